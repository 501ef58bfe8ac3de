"""The words that hypotheses may go on with: which are allowed, the best ones, and ones that are drawn.

In the shapes b is the number of sentences still being searched, k the beam and V the size of the target dictionary.
"""

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from .dictionary import Dictionary
from .hypotheses import Candidates, Growing
from .search_settings import SearchSettings

PAD, EOS, UNK = Dictionary.pad, Dictionary.eos, Dictionary.unk
_GROUP = 16  # words whose maximum is looked at first


def constrain(log_probs: Tensor, growing: Growing, t: int, settings: SearchSettings, prefix: Tensor | None) -> None:
    """Rule out, in place in (b, k, V), the words that cannot be number t (from 0), and penalize unknown ones."""
    log_probs[..., PAD] = -inf
    log_probs[..., UNK] -= settings.unkpen
    must_end = growing.limit <= t
    if t < settings.min_len:
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


def best(log_probs: Tensor, growing: Growing, beam: int) -> Candidates:
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
    return Candidates(totals, words.flatten(1).gather(1, which), parents.gather(1, which // _GROUP))


def draw(
    log_probs: Tensor, growing: Growing, settings: SearchSettings, generator: torch.Generator | None
) -> Candidates:
    """Return k continuations drawn from all words but the placeholder and padding: one of each hypothesis."""
    sentences, hypotheses, _ = log_probs.shape
    allowed = log_probs.clone()
    allowed[..., : PAD + 1] = -inf
    each = settings.beam // hypotheses  # all are continuations of the only one at the start
    # A model whose outputs are not numbers has no translation; drawing must not stop before that is seen.
    weights = _likeliest(allowed, settings.topk, settings.topp).flatten(0, 1).softmax(-1).nan_to_num(nan=1.0)
    words = torch.multinomial(weights, each, replacement=True, generator=generator)
    words = words.view(sentences, hypotheses, each)
    totals = growing.totals[:, :, -1:] + log_probs.gather(-1, words)
    parents = torch.arange(hypotheses, device=words.device).repeat_interleave(each).expand(sentences, -1)
    return Candidates(totals.flatten(1), words.flatten(1), parents)


def _likeliest(log_probs: Tensor, topk: int | None, topp: float | None) -> Tensor:
    """Return log-probabilities (..., V), up to a constant, of the `topk` likeliest words alone.

    Or of the fewest words, from the likeliest on, that have the probability `topp` together.
    """
    if topk is None and topp is None:
        return log_probs
    kept, words = log_probs.topk(log_probs.shape[-1] if topk is None else min(topk, log_probs.shape[-1]))
    if topp is not None:
        before = kept.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0.0
        kept = kept.masked_fill(before >= topp, -inf)
    return torch.full_like(log_probs, -inf).scatter(-1, words, kept)


def continuing(candidates: Candidates, beam: int) -> Candidates:
    """Return the first k candidates that do not end, in their order, and of k that were drawn all.

    Those that end come last then and have no probability.
    """
    order = torch.arange(candidates.words.shape[1], device=candidates.words.device)
    ends = candidates.words == EOS
    order = (order + ends * len(order)).topk(beam, largest=False).indices
    totals = candidates.totals.masked_fill(ends, -inf)
    return Candidates(*(values.gather(1, order) for values in (totals, candidates.words, candidates.parents)))
