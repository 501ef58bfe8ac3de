"""What a decoder keeps between two words of the sentences that it is writing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from factorized.layers.attention import AttentionCache


@dataclass
class Memory:
    """What the decoder reads of encoded sentences."""

    states: Tensor
    """output of the encoder, (B, S, d)"""
    padding: Tensor
    """True where the source is padding, (B, S)"""


class DecodingState:
    """Hypotheses about a batch of sentences in the middle of decoding; `beam` of them about each sentence.

    Row `b * beam + j` is the j-th hypothesis about the b-th sentence. Keys and values of the source exist once for each
    sentence. Those of the target are never moved while hypotheses are reordered: `histories` says which belong to whom.
    """

    def __init__(self, memory: list[tuple[Tensor, Tensor]], memory_mask: Tensor | None, sentences: int, beam: int):
        device = memory[0][0].device
        self.memory = memory  # keys and values of the source, for every layer
        self.memory_mask = memory_mask  # (B, 1, 1, S), or None if every state may be attended to
        self.caches = [AttentionCache() for _ in memory]
        self.histories = torch.ones(sentences, beam, 0, dtype=torch.bool, device=device)
        self.step = 0

    @property
    def beam(self) -> int:
        """Hypotheses about each sentence."""
        return self.histories.shape[1]

    def extend(self) -> Tensor:
        """Add a slot for the next word of every hypothesis; return the slots that each may see, (B, 1, beam, slots)."""
        own = torch.eye(self.beam, dtype=torch.bool, device=self.histories.device)
        self.histories = torch.cat([self.histories, own.expand(len(self.histories), -1, -1)], 2)
        self.step += 1
        return self.histories[:, None]

    def select(self, rows: Tensor) -> None:
        """Go on with the hypotheses `rows`, which may be repeated.

        Args:
            rows: shape (sentences, beam): for every sentence to go on with, as many rows as it shall have hypotheses,
                all of them about one sentence. Or flat, with as many to a sentence as there are now.

        Raises:
            ValueError: if the rows of a sentence are about several ones.
        """
        rows = rows.view(-1, self.beam) if rows.dim() == 1 else rows
        origin = rows // self.beam
        sentences = origin[:, 0]
        if not torch.equal(origin, sentences[:, None].expand_as(origin)):
            raise ValueError("the rows that take one sentence's place must be hypotheses about one sentence")
        before = len(self.histories)
        self.histories = self.histories.flatten(0, 1)[rows]
        if len(sentences) == before and torch.equal(sentences, torch.arange(before, device=rows.device)):
            return
        for cache in self.caches:
            cache.select(sentences)
        self.memory = [(key.index_select(0, sentences), value.index_select(0, sentences)) for key, value in self.memory]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask.index_select(0, sentences)
