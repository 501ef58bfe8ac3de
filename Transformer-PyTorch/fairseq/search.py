"""Beam search and sampling, for a batch of sentences at once.

In the shapes below b is the number of sentences still being searched, k the beam, t the words that each hypothesis has
so far and V the size of the target dictionary.

A model is any object with `encode(source) -> memory`, `start_decoding(memory) -> state`, one row for each sentence, and
`decode_step(words (rows,), state, need_attention) -> (logits (rows, V), attention (rows, S) or None)`. The state has
`select(rows)`: go on with the rows (b, k), k for each sentence, which were rows of one sentence before, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log

import torch
import torch.nn.functional as F
from torch import Tensor

from .dictionary import Dictionary

PAD, EOS, UNK = Dictionary.pad, Dictionary.eos, Dictionary.unk
_GROUP = 16  # words whose maximum is looked at first


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


class _Ensemble:
    """Models that step together: their probabilities are averaged."""

    def __init__(self, models: Sequence, source: Tensor, need_attention: bool):
        self.models, self.need_attention = models, need_attention
        self.states = [model.start_decoding(model.encode(source)) for model in models]

    def step(self, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities of the words after `words` (b, k), (b, k, V), and the attention (b, k, S)."""
        steps = [
            model.decode_step(words.flatten(), state, need_attention=self.need_attention)
            for model, state in zip(self.models, self.states)
        ]
        log_probs = average([_at_least_single(logits).log_softmax(-1) for logits, _ in steps])
        attention = sum(weights for _, weights in steps).view(*words.shape, -1) if self.need_attention else None
        return log_probs.view(*words.shape, -1), attention

    def select(self, rows: Tensor) -> None:
        """Go on with the hypotheses in these rows, (b, k)."""
        for state in self.states:
            state.select(rows)


def _at_least_single(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def average(log_probs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities."""
    return log_probs[0] if len(log_probs) == 1 else torch.stack(log_probs).logsumexp(0) - log(len(log_probs))


@dataclass
class _Growing:
    """The hypotheses that have not ended, of the sentences that are not done."""

    sentence: Tensor  # (b,): the row of the source
    limit: Tensor  # (b,): most words before the end
    words: Tensor  # (b, k, 1 + t): starts with EOS, as the decoder does
    totals: Tensor  # (b, k, 1 + t): summed log-probabilities so far, from 0; -inf where there is no hypothesis
    aligned: Tensor | None  # (b, k, t)

    @classmethod
    def start(cls, limit: Tensor, need_alignment: bool) -> "_Growing":
        """Return one empty hypothesis for each sentence."""
        words = torch.full((len(limit), 1, 1), EOS, device=limit.device)
        sentence, totals = torch.arange(len(limit), device=limit.device), torch.zeros_like(words, dtype=torch.float)
        return cls(sentence, limit, words, totals, words[:, :, :0] if need_alignment else None)

    def extended(self, chosen: "_Candidates", keep: Tensor) -> "_Growing":
        """Return the chosen (b, k) continuations, of the sentences `keep` alone."""
        parents, words, totals = chosen.parents[keep], chosen.words[keep], chosen.totals[keep]
        at = keep[:, None], parents
        return _Growing(
            self.sentence[keep],
            self.limit[keep],
            torch.cat([self.words[at], words[:, :, None]], -1),
            torch.cat([self.totals[at], totals[:, :, None]], -1),
            None if self.aligned is None else self.aligned[at],
        )


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
    if prefix is not None:  # no translation is empty
        prefix = prefix.masked_fill(prefix[:, :1] == EOS, PAD)
    decoders = _Ensemble(models, source, need_alignment)
    padding = source.eq(PAD).sum(1)
    growing = _Growing.start(limit, need_alignment)
    ended = _Ended(limit, settings)
    longest = int(limit.max())
    for t in range(longest + 1):
        log_probs, attention = decoders.step(growing.words[:, :, -1])
        _constrain(log_probs, growing, t, settings.unkpen, prefix)
        if attention is not None:
            most = attention.argmax(-1) - padding[growing.sentence, None]
            growing.aligned = torch.cat([growing.aligned, most[:, :, None]], -1)
        if settings.sampling:
            candidates = _draw(log_probs, growing, settings.beam, generator)
        else:
            candidates = _best(log_probs, growing, settings.beam)
        ended.add(candidates, growing)
        chosen = _continuing(candidates, settings.beam)
        keep = (~ended.is_done(growing, chosen.totals)).nonzero().flatten()
        if t == longest or not len(keep):
            break
        decoders.select(keep[:, None] * growing.words.shape[1] + chosen.parents[keep])
        growing = growing.extended(chosen, keep)
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


def _best(log_probs: Tensor, growing: _Growing, beam: int) -> _Candidates:
    """Return the 2k best continuations: as each hypothesis ends in one way only, k of them or more go on.

    The words of a hypothesis are looked at in groups. The 2k best words are in the 2k groups with the best maxima, and
    maxima are found much faster than the best of a whole row. Words `rest` + i, `rest` + i + `groups`, ... are group
    `rest` + i; the first `rest` words, which would make groups uneven, are groups of their own.
    """
    size, totals = log_probs.shape[-1], growing.totals[:, :, -1]
    groups, rest = divmod(size, _GROUP)
    maxima = log_probs[..., rest:].unflatten(-1, (_GROUP, groups)).amax(-2)
    maxima = torch.cat([log_probs[..., :rest], maxima], -1) + totals[:, :, None]
    chosen = maxima.flatten(1).topk(min(2 * beam, maxima[0].numel())).indices
    parents, first = chosen // maxima.shape[-1], chosen % maxima.shape[-1]
    member = torch.arange(_GROUP, device=log_probs.device)
    words = first[..., None] + groups * member
    words = words.where((first[..., None] >= rest) | (member == 0), PAD)  # which has no probability
    places = parents[..., None] * size + words
    totals = log_probs.flatten(1).gather(1, places.flatten(1)) + totals.gather(1, parents).repeat_interleave(_GROUP, 1)
    short = max(0, 2 * beam - totals.shape[1])  # of a single hypothesis, when there are hardly more words than `beam`
    totals, which = F.pad(totals, (0, short), value=-inf).topk(2 * beam)
    which = which.clamp(max=words[0].numel() - 1)
    return _Candidates(totals, words.flatten(1).gather(1, which), parents.gather(1, which // _GROUP))


def _draw(log_probs: Tensor, growing: _Growing, beam: int, generator: torch.Generator | None) -> _Candidates:
    """Return k continuations drawn from all words but the placeholder and padding: one of each hypothesis."""
    sentences, hypotheses, _ = log_probs.shape
    allowed = log_probs.clone()
    allowed[..., : PAD + 1] = -inf
    each = beam // hypotheses  # all are continuations of the only one at the start
    words = torch.multinomial(allowed.flatten(0, 1).softmax(-1), each, replacement=True, generator=generator)
    words = words.view(sentences, hypotheses, each)
    totals = growing.totals[:, :, -1:] + log_probs.gather(-1, words)
    parents = torch.arange(hypotheses, device=words.device).repeat_interleave(each).expand(sentences, -1)
    return _Candidates(totals.flatten(1), words.flatten(1), parents)


def _continuing(candidates: _Candidates, beam: int) -> _Candidates:
    """Return the first k candidates that do not end, in their order, and of k that were drawn all.

    Those that end come last then and have no probability.
    """
    order = torch.arange(candidates.words.shape[1], device=candidates.words.device)
    ends = candidates.words == EOS
    order = (order + ends * len(order)).topk(beam, largest=False).indices
    totals = candidates.totals.masked_fill(ends, -inf)
    return _Candidates(*(values.gather(1, order) for values in (totals, candidates.words, candidates.parents)))


class _Ended:
    """The hypotheses that have ended, of all sentences."""

    def __init__(self, limit: Tensor, settings: SearchSettings):
        self.settings = settings
        self.count = torch.zeros_like(limit)
        self.scores = torch.full((len(limit), settings.beam), -inf, device=limit.device)  # the best of each sentence
        self.longest = (limit + 1) ** settings.lenpen if settings.normalize else torch.ones_like(limit)
        self.records: list[tuple[Tensor | None, ...]] = []

    def add(self, candidates: _Candidates, growing: _Growing) -> None:
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
