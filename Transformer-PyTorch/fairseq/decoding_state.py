"""What a decoder keeps between two words of the sentences that it is writing."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Memory:
    """What the decoder reads of encoded sentences."""

    states: Tensor
    """The output of the encoder, shape (B, S, d)."""
    padding: Tensor
    """A mask that is True where the source is padding, shape (B, S)."""


class AttentionCache:
    """Keys and values that a self-attention layer has seen, for decoding step by step.

    Each step appends the keys and values of its positions as slots. The positions of a step may be those of several
    hypotheses about one sentence: then a `mask` (B, 1, hypotheses, slots) says which slots belong to the history of
    which hypothesis, and when hypotheses are dropped or doubled the mask alone changes; nothing is copied.
    """

    def __init__(self):
        self._buffer: Tensor | None = None  # (2, B, heads, capacity, h)
        self.slots = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add slots (B, heads, n, h); return the keys and values of all slots, each (B, heads, slots, h)."""
        end = self.slots + key.shape[2]
        if self._buffer is None or end > self._buffer.shape[3]:
            self._grow(key, max(2 * end, 32))
        self._buffer[0, :, :, self.slots : end] = key
        self._buffer[1, :, :, self.slots : end] = value
        self.slots = end
        return tuple(self._buffer[:, :, :, :end].unbind())

    def select(self, index: Tensor) -> None:
        """Keep the rows `index` of the batch, in that order."""
        if self._buffer is not None:
            self._buffer = self._buffer.index_select(1, index)

    def _grow(self, like: Tensor, capacity: int) -> None:
        batch, heads, _, width = like.shape
        buffer = like.new_empty(2, batch, heads, capacity, width)
        if self._buffer is not None:
            buffer[:, :, :, : self.slots] = self._buffer[:, :, :, : self.slots]
        self._buffer = buffer


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
