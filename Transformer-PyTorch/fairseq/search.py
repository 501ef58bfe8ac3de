"""Beam search and sampling, for a batch of sentences at once.

In the shapes below b is the number of sentences still being searched, k the beam, t the words that each hypothesis has
so far and V the size of the target dictionary.

A model is any object with `encode(source) -> memory`, `start_decoding(memory, beam) -> state` and
`decode_step(words (b * k,), state, need_attention) -> (logits (b * k, V), attention (b * k, S) or None)`, whose state
has `select(rows)`: go on with these of its rows, in this order. The rows of a sentence are always together, so a
selection either drops a sentence with all its rows or keeps their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log

import torch
from torch import Tensor

from .dictionary import Dictionary

PAD, EOS, UNK = Dictionary.pad, Dictionary.eos, Dictionary.unk


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Raises:
        ValueError: for a beam below 1 or a negative `lenpen`, which would leave the search without a bound.
    """

    beam: int = 5
    """Hypotheses that are kept for each sentence."""
    early_stop: bool = True
    """Whether a sentence is done when `beam` hypotheses have ended, or only when no better one can follow."""
    normalize: bool = True
    """Whether scores are divided by length ** lenpen."""
    lenpen: float = 1.0
    unkpen: float = 0.0
    """What is subtracted from the log-probability of an unknown word."""
    sampling: bool = False
    """Draw `beam` translations from the model's distribution instead of searching for the best."""

    def __post_init__(self):
        if self.beam < 1 or self.lenpen < 0:
            raise ValueError(f"beam must be at least 1 and lenpen at least 0, not {self.beam} and {self.lenpen}")


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


class Ensemble:
    """Models that step together: their probabilities are averaged."""

    def __init__(self, models: Sequence, source: Tensor, beam: int, need_attention: bool):
        self.models, self.need_attention = models, need_attention
        self.states = [model.start_decoding(model.encode(source), beam) for model in models]

    def step(self, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities of the next words, (b * k, V), and the attention if it is needed."""
        steps = [
            model.decode_step(words, state, need_attention=self.need_attention)
            for model, state in zip(self.models, self.states)
        ]
        log_probs = average([logits.log_softmax(-1) for logits, _ in steps])
        return log_probs, sum(attention for _, attention in steps) if self.need_attention else None

    def select(self, rows: Tensor) -> None:
        """Go on with the hypotheses in these rows."""
        for state in self.states:
            state.select(rows)


def average(log_probs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities."""
    return log_probs[0] if len(log_probs) == 1 else torch.stack(log_probs).logsumexp(0) - log(len(log_probs))


@dataclass
class _Growing:
    """The hypotheses that have not ended, of the sentences that are not done."""

    sentence: Tensor  # (b,): the row of the source
    limit: Tensor  # (b,): most words before the end
    words: Tensor  # (b, k, 1 + t): starts with EOS, as the decoder does
    totals: Tensor  # (b, k, 1 + t): summed log-probabilities so far; -inf where there is no hypothesis
    aligned: Tensor | None  # (b, k, t)

    @classmethod
    def start(cls, limit: Tensor, settings: SearchSettings, need_alignment: bool) -> "_Growing":
        sentences, beam, device = len(limit), settings.beam, limit.device
        words = torch.full((sentences, beam, 1), EOS, device=device)
        totals = torch.zeros(sentences, beam, 1, device=device)
        if not settings.sampling:
            totals[:, 1:] = -inf  # a beam of equal hypotheses would bring every continuation several times
        aligned = words[:, :, :0] if need_alignment else None
        return cls(torch.arange(sentences, device=device), limit, words, totals, aligned)


@dataclass
class _Candidates:
    """Continuations of hypotheses by one word, best first: (b, c) each."""

    totals: Tensor
    words: Tensor
    parents: Tensor
    """Which of the sentence's hypotheses goes on."""


@torch.inference_mode()
def search(
    models: Sequence,
    source: Tensor,
    limit: Tensor,
    settings: SearchSettings,
    *,
    prefix: Tensor | None = None,
    need_alignment: bool = False,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Translate a batch of sentences. Returns up to `beam` hypotheses for each, best first, at least one.

    A sentence is taken out of the batch when it is done.

    Args:
        models: one, or several to average.
        source: (B, S), as the models' `encode` takes it.
        limit: (B,) most words of a translation, without EOS. All that then have not ended are ended.
        prefix: (B, P) words that the translations must start with, PAD where anything may follow.
        need_alignment: whether the hypotheses should have an `alignment`.
        generator: for sampling.
    """
    beam, longest = settings.beam, int(limit.max())
    if prefix is not None:  # no translation is empty
        prefix = prefix.masked_fill(prefix[:, :1] == EOS, PAD)
    decoders = Ensemble(models, source, beam, need_alignment)
    growing = _Growing.start(limit, settings, need_alignment)
    ended = _Ended(len(source), settings, limit)
    for t in range(longest + 1):
        log_probs, attention = decoders.step(growing.words[:, :, -1].flatten())
        log_probs = log_probs.view(len(growing.sentence), beam, -1)
        _constrain(log_probs, growing, t, settings.unkpen, prefix)
        if attention is not None:
            most = attention.argmax(-1).view(-1, beam, 1)
            growing.aligned = torch.cat([growing.aligned, most], -1)
        candidates = _draw(log_probs, growing, generator) if settings.sampling else _best(log_probs, growing)
        ends = (candidates.words == EOS) & (candidates.totals > -inf)
        ends[:, beam:] = False
        ended.add(ends, candidates, growing)
        chosen = _continuing(candidates, beam)
        if t == longest:
            break
        keep = (~ended.is_done(growing, chosen.totals)).nonzero().flatten()
        if not len(keep):
            break
        _grow(growing, chosen, keep)
        decoders.select((keep[:, None] * beam + chosen.parents[keep]).flatten())
    return ended.hypotheses()


def _constrain(log_probs: Tensor, growing: _Growing, t: int, unkpen: float, prefix: Tensor | None) -> None:
    """Rule out, in place in (b, k, V), the words that cannot be number t (from 0), and penalize unknown ones."""
    log_probs[..., PAD] = -inf
    log_probs[..., UNK] -= unkpen
    must_end = growing.limit <= t
    if t == 0:
        log_probs[~must_end, :, EOS] = -inf
    if prefix is not None and t < prefix.shape[1]:
        forced = prefix[growing.sentence, t]
        _force(log_probs, ((forced != PAD) & ~must_end).nonzero().flatten(), forced)
    _force(log_probs, must_end.nonzero().flatten(), torch.full_like(growing.sentence, EOS))


def _force(log_probs: Tensor, sentences: Tensor, words: Tensor) -> None:
    """Leave these sentences only the word that `words` (b,) has for each."""
    if len(sentences):
        words = words[sentences, None, None].expand(-1, log_probs.shape[1], 1)
        kept = log_probs[sentences].gather(-1, words)
        log_probs[sentences] = torch.full_like(log_probs[sentences], -inf).scatter_(-1, words, kept)


def _best(log_probs: Tensor, growing: _Growing) -> _Candidates:
    """Return the 2k best continuations: with one EOS for each hypothesis at most, k of them or more go on."""
    sentences, beam, size = log_probs.shape
    each = min(2 * beam, size)
    best, words = log_probs.topk(each)  # none but the best of its own continuations can be among the best of all
    best += growing.totals[:, :, -1:]
    totals, which = best.view(sentences, -1).topk(2 * beam)
    return _Candidates(totals, words.view(sentences, -1).gather(1, which), which // each)


def _draw(log_probs: Tensor, growing: _Growing, generator: torch.Generator | None) -> _Candidates:
    """Return one continuation of each hypothesis, drawn from all words but the placeholder and padding."""
    sentences, beam, _ = log_probs.shape
    allowed = log_probs.clone()
    allowed[..., : PAD + 1] = -inf
    words = torch.multinomial(allowed.flatten(0, 1).softmax(-1), 1, generator=generator).view(sentences, beam, 1)
    totals = growing.totals[:, :, -1] + log_probs.gather(-1, words)[..., 0]
    parents = torch.arange(beam, device=words.device).expand(sentences, -1)
    return _Candidates(totals, words[..., 0], parents)


def _continuing(candidates: _Candidates, beam: int) -> _Candidates:
    """Return the first k candidates that do not end, in their order, and of k that were drawn all.

    Those that end come last then and have no probability.
    """
    order = torch.arange(candidates.words.shape[1], device=candidates.words.device)
    ends = candidates.words == EOS
    order = (order + ends * len(order)).topk(beam, largest=False).indices
    totals = candidates.totals.masked_fill(ends, -inf)
    return _Candidates(*(values.gather(1, order) for values in (totals, candidates.words, candidates.parents)))


def _grow(growing: _Growing, chosen: _Candidates, keep: Tensor) -> None:
    """Append the chosen words, going on only with the sentences in `keep`."""
    growing.sentence, growing.limit = growing.sentence[keep], growing.limit[keep]
    parents = (keep[:, None], chosen.parents[keep])
    growing.words = torch.cat([growing.words[parents], chosen.words[keep, :, None]], -1)
    growing.totals = torch.cat([growing.totals[parents], chosen.totals[keep, :, None]], -1)
    if growing.aligned is not None:
        growing.aligned = growing.aligned[parents]


class _Ended:
    """The hypotheses that have ended, of all sentences."""

    def __init__(self, sentences: int, settings: SearchSettings, limit: Tensor):
        self.settings = settings
        self.count = torch.zeros_like(limit)
        self.scores = torch.full((sentences, settings.beam), -inf, device=limit.device)  # the best of each sentence
        self.longest = (limit + 1) ** settings.lenpen if settings.normalize else torch.ones_like(limit)
        self.records: list[tuple[Tensor | None, ...]] = []

    def add(self, ends: Tensor, candidates: _Candidates, growing: _Growing) -> None:
        """Take in the candidates marked in `ends` (b, c), best first; with early stopping only k for each sentence."""
        sentence = growing.sentence
        if self.settings.early_stop:
            ends = ends & (self.count[sentence, None] + ends.cumsum(1) <= self.settings.beam)
        row, column = ends.nonzero(as_tuple=True)
        if not len(row):
            return
        length = growing.words.shape[2]  # with EOS at the end instead of the start
        scores = candidates.totals / length**self.settings.lenpen if self.settings.normalize else candidates.totals
        self.count[sentence] += ends.sum(1)
        best = torch.cat([self.scores[sentence], scores.masked_fill(~ends, -inf)], 1)
        self.scores[sentence] = best.topk(self.settings.beam).values.to(self.scores.dtype)

        parent = candidates.parents[row, column]
        totals = torch.cat([growing.totals[row, parent], candidates.totals[row, column, None]], 1)
        aligned = None if growing.aligned is None else growing.aligned[row, parent]
        self.records.append((sentence[row], scores[row, column], growing.words[row, parent, 1:], totals.diff(), aligned))

    def is_done(self, growing: _Growing, totals: Tensor) -> Tensor:
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
