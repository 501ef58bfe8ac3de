"""Batches of sentence pairs of like length, within a budget of padded words."""

import dataclasses
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from lab.cli import UserError

from .corpus import Corpus
from .dictionary import Dictionary
from .indexed import Sentences


@dataclass
class Batch:
    """Sentence pairs, by falling length of the source.

    Args:
        ids: (B,), the rows of the corpus.
        source: (B, S), padded on the left.
        target: (B, T), padded on the right, or None.
        decoder_input: (B, T), the target with its end moved to the front, or None.
        ntokens: words of the target, ends counted and padding not.
    """

    ids: numpy.ndarray
    source: Tensor
    target: Tensor | None
    decoder_input: Tensor | None
    ntokens: int

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with its tensors on `device`."""
        tensors = {"source": self.source, "target": self.target, "decoder_input": self.decoder_input}
        moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items() if value is not None}
        return dataclasses.replace(self, **moved)


def collate(corpus: Corpus, ids: Iterable[int]) -> Batch:
    """Return the rows `ids` of `corpus` as a batch."""
    ids = numpy.asarray(ids, numpy.int64)
    ids = ids[numpy.argsort(-corpus.source_sizes[ids], kind="stable")]
    source = torch.from_numpy(_padded(corpus.source, ids, left=True))
    if corpus.target is None:
        return Batch(ids, source, None, None, 0)
    target = _padded(corpus.target, ids, left=False)
    sizes = corpus.target_sizes[ids]
    decoder_input = numpy.full_like(target, Dictionary.pad)
    decoder_input[:, 1:] = target[:, :-1]
    decoder_input[numpy.arange(target.shape[1]) >= sizes[:, None]] = Dictionary.pad  # the end of the shorter ones
    decoder_input[:, :1] = Dictionary.eos
    return Batch(ids, source, torch.from_numpy(target), torch.from_numpy(decoder_input), int(sizes.sum()))


def _padded(sentences: Sentences, ids: numpy.ndarray, left: bool) -> numpy.ndarray:
    """Return sentences (len(ids), longest), int64, padded on the left or right."""
    sizes = sentences.sizes[ids][:, None]
    columns = numpy.arange(sizes.max(initial=0))
    inside = columns >= len(columns) - sizes if left else columns < sizes
    places = sentences.starts[ids][:, None] + columns - (len(columns) - sizes if left else 0)
    padded = numpy.full(inside.shape, Dictionary.pad, numpy.int64)
    padded[inside] = sentences.values[places[inside]]
    return padded


def training_batches(
    corpus: Corpus,
    *,
    seed: int,
    max_tokens: int,
    max_sentences: int | None = None,
    max_positions: tuple[int, int] = (1022, 1022),
    shuffle: bool = True,
) -> list[numpy.ndarray]:
    """Return the batches of one pass through the corpus, as arrays of rows.

    Pairs are sorted by the length of source and target, with random ties, and cut into batches, whose order is random.
    Pairs with a side that is empty or too long are left out, with a warning.

    Args:
        corpus: sentence pairs.
        seed: decides all that is random; the run's seed plus the epoch, counted from 1.
        max_tokens: (sentences of a batch) x (longest of their sources and targets) is at most this, unless the batch
            is a single pair.
        max_sentences: the same for the number of sentences.
        max_positions: longest source and target, ends counted.
        shuffle: False leaves the batches in the order of their length.

    Raises:
        UserError: if no pair is left.
    """
    random = numpy.random.RandomState(seed % 2**32)
    order = random.permutation(len(corpus))
    order = order[numpy.argsort(corpus.target_sizes[order], kind="stable")]
    order = order[numpy.argsort(corpus.source_sizes[order], kind="stable")]
    valid = _valid(corpus, max_positions)
    if not valid.any():
        raise UserError(f"no pair is left to train on: {_complaint(corpus, valid, max_positions)}")
    if not valid.all():
        warnings.warn(f"{_complaint(corpus, valid, max_positions)}; they are left out", stacklevel=2)
        order = order[valid[order]]
    batches = _cut(corpus, order, max_tokens, max_sentences, one_length=False)
    if shuffle:
        random.shuffle(batches)
    return batches


def epoch_batches(
    corpus: Corpus, *, seed: int, epoch: int, sample: int = 0, curriculum: int = 0, **limits
) -> list[numpy.ndarray]:
    """Return the batches of an epoch, counted from 1: a whole pass through the corpus, or the next `sample` batches.

    Epochs of `sample` batches go on where the one before ended, so no pair is drawn twice before all were drawn.

    Args:
        curriculum: the first passes through the corpus, this many, go by length.
        limits: as for `training_batches`.
    """

    def passage(number: int) -> list[numpy.ndarray]:
        return training_batches(corpus, seed=seed + number, shuffle=number > curriculum, **limits)

    if not sample:
        return passage(epoch)
    # Every pass has as many batches as the first: its sorted lengths are the same.
    length = len(passage(1))
    passages, begin = divmod((epoch - 1) * sample, length)
    batches: list[numpy.ndarray] = []
    while len(batches) < begin + sample:
        passages += 1
        batches += passage(passages)
    return batches[begin : begin + sample]


def evaluation_batches(
    corpus: Corpus,
    *,
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    max_positions: tuple[int, int] = (1022, 1022),
    longest_first: bool = False,
    skip_invalid: bool = False,
    one_length: bool = True,
    leave_out_empty: bool = False,
) -> list[numpy.ndarray]:
    """Return batches by the length of the source, which is the same in all of a batch, so that it needs no padding.

    Args:
        corpus: sentences, with or without translations.
        max_tokens, max_sentences, max_positions: as for `training_batches`.
        longest_first: begin with the longest.
        skip_invalid: leave out pairs with a side that is too long, with a warning.
        one_length: False fills batches up with sentences of the next length, for models that padding does not disturb.
        leave_out_empty: leave out pairs with an empty side, with a warning, as `training_batches` does.

    Raises:
        UserError: if a side is too long, and such pairs are not to be left out.
    """
    fitting = _valid(corpus, max_positions, shortest=1)
    valid = _valid(corpus, max_positions, shortest=2 if leave_out_empty else 1)
    if not skip_invalid and not fitting.all():
        complaint = _complaint(corpus, fitting, max_positions)
        raise UserError(f"{complaint}; --skip-invalid-size-inputs-valid-test leaves them out")
    if not valid.all():
        warnings.warn(f"{_complaint(corpus, valid, max_positions)}; they are left out", stacklevel=2)
    order = numpy.argsort(corpus.source_sizes, kind="stable")
    order = order[::-1] if longest_first else order
    return _cut(corpus, order[valid[order]], max_tokens, max_sentences, one_length)


def shard(batches: list[numpy.ndarray], rank: int, world: int) -> list[numpy.ndarray]:
    """Return every `world`-th batch from number `rank` on; all ranks get equally many, the last ones perhaps empty."""
    empty = numpy.zeros(0, numpy.int64)
    padded = [*batches, *[empty] * (-len(batches) % world)]
    return padded[rank::world]


def _sides(corpus: Corpus) -> list[numpy.ndarray]:
    """Return the sizes of the sides there are."""
    return [corpus.source_sizes] if corpus.target is None else [corpus.source_sizes, corpus.target_sizes]


def _valid(corpus: Corpus, max_positions: tuple[int, int], shortest: int = 2) -> numpy.ndarray:
    """Return which pairs have at least `shortest` numbers on both sides and are not too long; one is the end."""
    sizes = zip(_sides(corpus), max_positions)
    return numpy.all([(side >= shortest) & (side <= most) for side, most in sizes], axis=0)


def _complaint(corpus: Corpus, valid: numpy.ndarray, max_positions: tuple[int, int]) -> str:
    wrong = numpy.flatnonzero(~valid)
    sides = _sides(corpus)
    sizes = " -> ".join(str(side[wrong[0]] - 1) for side in sides)
    limits = " -> ".join(str(most - 1) for most in max_positions[: len(sides)])
    return (
        f"{len(wrong)} of {len(corpus)} sentences have no words, or more than {limits}; "
        f"the first is number {wrong[0] + 1} with {sizes}"
    )


def _cut(
    corpus: Corpus, order: numpy.ndarray, max_tokens: int | None, max_sentences: int | None, one_length: bool
) -> list[numpy.ndarray]:
    """Cut `order` into batches within the limits; `one_length` gives each batch sources of one length."""
    max_tokens, max_sentences = max_tokens or numpy.inf, max_sentences or numpy.inf
    cuts, begin, longest, first = [], 0, 0, 0
    lengths, sources = numpy.max(_sides(corpus), axis=0)[order], corpus.source_sizes[order]
    # Plain integers: indexing arrays one by one would take most of the time.
    for place, (length, source) in enumerate(zip(lengths.tolist(), sources.tolist())):
        grown = max(longest, length)
        count = place - begin
        if count and ((count + 1) * grown > max_tokens or count >= max_sentences or (one_length and source != first)):
            cuts.append(place)
            begin, grown = place, length
        if place == begin:
            first = source
        longest = grown
    return numpy.split(order, cuts) if len(order) else []
