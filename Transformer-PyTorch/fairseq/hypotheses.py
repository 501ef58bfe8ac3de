"""Hypotheses about a batch of sentences: those that grow word by word, and those that have ended.

In the shapes b is the number of sentences still being searched, k the beam and t the words of a hypothesis so far.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from .dictionary import Dictionary
from .search_settings import SearchSettings

EOS = Dictionary.eos


@dataclass(frozen=True)
class Hypothesis:
    """A translation that has ended."""

    words: list[int]
    """Numbers of the words, the last of which is the end of the sentence."""
    score: float
    log_probs: list[float]
    """One for each of `words`."""
    alignment: list[int] | None = None
    """For each of `words` the position in the source that got most attention."""


@dataclass
class Growing:
    """The hypotheses that have not ended, of the sentences that are not done."""

    sentence: Tensor  # (b,): the row of the source
    limit: Tensor  # (b,): most words before the end
    words: Tensor  # (b, k, 1 + t): starts with EOS, as the decoder does
    totals: Tensor  # (b, k, 1 + t): summed log-probabilities so far, from 0; -inf where there is no hypothesis
    aligned: Tensor | None  # (b, k, t)

    @classmethod
    def start(cls, limit: Tensor, need_alignment: bool) -> "Growing":
        """Return one empty hypothesis for each sentence."""
        words = torch.full((len(limit), 1, 1), EOS, device=limit.device)
        sentence, totals = torch.arange(len(limit), device=limit.device), torch.zeros_like(words, dtype=torch.float)
        return cls(sentence, limit, words, totals, words[:, :, :0] if need_alignment else None)

    def extended(self, chosen: "Candidates", keep: Tensor) -> "Growing":
        """Return the chosen (b, k) continuations, of the sentences `keep` alone."""
        parents, words, totals = chosen.parents[keep], chosen.words[keep], chosen.totals[keep]
        at = keep[:, None], parents
        return Growing(
            self.sentence[keep],
            self.limit[keep],
            torch.cat([self.words[at], words[:, :, None]], -1),
            torch.cat([self.totals[at], totals[:, :, None]], -1),
            None if self.aligned is None else self.aligned[at],
        )


@dataclass
class Candidates:
    """Continuations of hypotheses by one word, best first: (b, c) each."""

    totals: Tensor
    words: Tensor
    parents: Tensor
    """Which of the sentence's hypotheses goes on."""


class Ended:
    """The hypotheses that have ended, of all sentences."""

    def __init__(self, limit: Tensor, settings: SearchSettings):
        self.settings = settings
        self.count = torch.zeros_like(limit)
        self.scores = torch.full((len(limit), settings.beam), -inf, device=limit.device)  # the best of each sentence
        self.longest = (limit + 1) ** settings.lenpen if settings.normalize else torch.ones_like(limit)
        self.records: list[tuple[Tensor | None, ...]] = []

    def add(self, candidates: Candidates, growing: Growing) -> None:
        """Take in those of the best k candidates that end; with early stopping, only until a sentence has k of them."""
        sentence, beam = growing.sentence, self.settings.beam
        ends = (candidates.words == EOS) & (candidates.totals > -inf)
        ends[:, beam:] = False
        if self.settings.early_stop:
            ends &= self.count[sentence, None] + ends.cumsum(1) <= beam
        row, column = ends.nonzero(as_tuple=True)
        if not len(row):
            return
        length = growing.words.shape[2]  # it counts EOS, at the start instead of the end
        scores = candidates.totals / length**self.settings.lenpen if self.settings.normalize else candidates.totals
        self.count[sentence] += ends.sum(1)
        best = torch.cat([self.scores[sentence], scores.masked_fill(~ends, -inf)], 1).topk(beam).values
        self.scores[sentence] = best.to(self.scores.dtype)

        parent = candidates.parents[row, column]
        totals = torch.cat([growing.totals[row, parent], candidates.totals[row, column, None]], 1)
        words = growing.words[row, parent, 1:]
        aligned = None if growing.aligned is None else growing.aligned[row, parent]
        self.records.append((sentence[row], scores[row, column], words, totals.diff(), aligned))

    def is_done(self, growing: Growing, totals: Tensor) -> Tensor:
        """Return (b,): whether no hypothesis goes on, given their `totals` (b, k), or none that could be kept."""
        best, sentence = totals.amax(1), growing.sentence
        if self.settings.early_stop:
            enough = self.count[sentence] >= self.settings.beam
        else:  # totals only fall, and at the greatest length they count most
            enough = self.scores[sentence].amin(1) >= best / self.longest[sentence]
        return enough | (best == -inf)

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Return the best of each sentence, best first."""
        found: list[list[Hypothesis]] = [[] for _ in range(len(self.scores))]
        for sentence, score, words, log_probs, aligned in self.records:
            rows = zip(sentence.tolist(), score.tolist(), words.tolist(), log_probs.tolist())
            alignments = aligned.tolist() if aligned is not None else [None] * len(sentence)
            for (number, *fields), alignment in zip(rows, alignments):
                found[number].append(Hypothesis([*fields[1], EOS], fields[0], fields[2], alignment))
        return [sorted(each, key=lambda hypothesis: -hypothesis.score)[: self.settings.beam] for each in found]
