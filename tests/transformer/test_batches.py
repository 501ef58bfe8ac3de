"""Batches: the published example, the limits, what is left out, and padding."""

import numpy
import pytest
import torch
from fairseq.batches import collate, epoch_batches, evaluation_batches, shard, training_batches
from fairseq.corpus import Corpus
from fairseq.dictionary import Dictionary

from lab.cli import UserError

DICTIONARY = Dictionary(["a"])
SOURCE, TARGET = [3, 5, 4, 9, 3, 7, 5, 4, 6, 12], [4, 4, 6, 8, 2, 7, 5, 3, 9, 10]


def make_corpus(source, target) -> Corpus:
    """Return a corpus of sentences of these sizes, ends counted."""
    sides = [None if sizes is None else [[4] * (size - 1) + [2] for size in sizes] for sizes in (source, target)]
    return Corpus(*sides, DICTIONARY, DICTIONARY)


EXAMPLE = make_corpus(SOURCE, TARGET)


def lists(batches) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize(
    ("seed", "shuffle", "expected"),
    [
        (2, True, [[9], [4, 0, 7], [8, 5], [2, 1, 6], [3]]),
        (3, True, [[3], [4, 0, 7], [9], [2, 1, 6], [8, 5]]),
        (2, False, [[4, 0, 7], [2, 1, 6], [8, 5], [3], [9]]),
    ],
)
def test_published_example_of_training(seed, shuffle, expected):
    state = numpy.random.get_state()[1].copy()
    assert lists(training_batches(EXAMPLE, seed=seed, max_tokens=20, shuffle=shuffle)) == expected
    assert (numpy.random.get_state()[1] == state).all()


def test_published_example_of_evaluation():
    two = evaluation_batches(EXAMPLE, max_sentences=2)
    assert lists(two) == [[0, 4], [2, 7], [1, 6], [8], [5], [3], [9]]
    longest = evaluation_batches(EXAMPLE, max_tokens=20, longest_first=True)
    assert lists(longest) == [[9], [3], [5], [8], [6, 1], [7, 2], [4, 0]]


def test_evaluation_may_mix_lengths():
    """By hand: three sentences end the first two batches, 3 x 9 and 2 x 12 words would be too many for the others."""
    mixed = evaluation_batches(EXAMPLE, max_tokens=20, max_sentences=3, one_length=False)
    assert lists(mixed) == [[0, 4, 2], [7, 1, 6], [8, 5], [3], [9]]


def test_limits_and_order_of_a_large_corpus():
    random = numpy.random.RandomState(0)
    corpus = make_corpus(random.randint(2, 60, 3000), random.randint(2, 60, 3000))
    longest = numpy.maximum(corpus.source_sizes, corpus.target_sizes)
    batches = training_batches(corpus, seed=5, max_tokens=500, max_sentences=12)
    assert sorted(numpy.concatenate(batches)) == list(range(3000))
    assert all(len(batch) * longest[batch].max() <= 500 and len(batch) <= 12 for batch in batches)
    for batch in batches:  # by source length, then by target length
        keys = list(zip(corpus.source_sizes[batch], corpus.target_sizes[batch]))
        assert keys == sorted(keys)
    assert lists(batches) != lists(training_batches(corpus, seed=6, max_tokens=500, max_sentences=12))


def test_a_pair_longer_than_the_budget_is_alone():
    batches = training_batches(make_corpus([3, 50, 3], [3, 9, 3]), seed=1, max_tokens=10, shuffle=False)
    assert [sorted(batch) for batch in lists(batches)] == [[0, 2], [1]]
    assert lists(evaluation_batches(make_corpus([30, 3], [3, 30]), max_tokens=10)) == [[1], [0]]


def test_empty_and_long_pairs_are_left_out_of_training():
    corpus = make_corpus([3, 1, 3, 11, 3, 10], [3, 3, 1, 3, 21, 20])
    message = "4 of 6 sentences have no words, or more than 9 -> 19; the first is number 2 with 0 -> 2; they are left"
    with pytest.warns(UserWarning, match=message):
        batches = training_batches(corpus, seed=1, max_tokens=100, max_positions=(10, 20))
    assert sorted(numpy.concatenate(batches)) == [0, 5]
    with pytest.raises(UserError, match="no pair is left to train on: 6 of 6 sentences"):
        training_batches(corpus, seed=1, max_tokens=100, max_positions=(2, 2))


def test_long_pairs_stop_an_evaluation_and_empty_ones_do_not():
    corpus = make_corpus([3, 11, 3], [3, 3, 1])
    with pytest.raises(UserError, match="1 of 3 sentences .* number 2 with 10 -> 2; --skip-invalid-size-inputs"):
        evaluation_batches(corpus, max_positions=(10, 10))
    with pytest.warns(UserWarning, match="left out"):
        assert lists(evaluation_batches(corpus, max_positions=(10, 10), skip_invalid=True)) == [[0, 2]]
    assert lists(evaluation_batches(corpus, max_positions=(11, 10))) == [[0, 2], [1]]
    with pytest.warns(UserWarning, match="1 of 3 sentences .* number 3 with 2 -> 0; they are left out"):
        assert lists(evaluation_batches(corpus, max_positions=(11, 10), leave_out_empty=True)) == [[0], [1]]


def test_sources_alone():
    corpus = make_corpus([4, 3, 4], None)
    assert lists(evaluation_batches(corpus, max_sentences=5)) == [[1], [0, 2]]
    batch = collate(corpus, [0, 2])
    assert batch.target is None and batch.decoder_input is None and batch.source.shape == (2, 4)
    with pytest.raises(UserError, match="no words, or more than 2; the first is number 1 with 3"):
        evaluation_batches(corpus, max_positions=(3, 3))


def test_epochs_of_a_whole_pass_take_seed_and_epoch():
    for epoch, curriculum in [(1, 0), (2, 1), (2, 2)]:
        found = epoch_batches(EXAMPLE, seed=1, epoch=epoch, curriculum=curriculum, max_tokens=20)
        expected = training_batches(EXAMPLE, seed=1 + epoch, shuffle=epoch > curriculum, max_tokens=20)
        assert lists(found) == lists(expected)


def test_sampled_epochs_draw_every_batch_once_before_any_twice():
    """5 batches in a pass, 3 in an epoch: 5 epochs are 3 passes."""
    options = {"seed": 1, "max_tokens": 20}
    drawn = [epoch_batches(EXAMPLE, epoch=epoch, sample=3, **options) for epoch in range(1, 6)]
    assert [len(batches) for batches in drawn] == [3] * 5
    stream = [batch for batches in drawn for batch in lists(batches)]
    passes = [stream[:5], stream[5:10], stream[10:]]
    assert all(sorted(row for batch in part for row in batch) == list(range(10)) for part in passes)
    assert passes == [lists(training_batches(EXAMPLE, seed=seed, max_tokens=20)) for seed in (2, 3, 4)]
    whole = epoch_batches(EXAMPLE, epoch=1, sample=12, **options)  # more than there are in a pass
    assert lists(whole) == stream[:12]


def test_workers_get_equally_many_batches():
    batches = [numpy.array([number]) for number in range(5)]
    assert lists(shard(batches, 0, 2)) == [[0], [2], [4]]
    assert lists(shard(batches, 1, 2)) == [[1], [3], []]
    assert lists(shard(batches, 0, 1)) == lists(batches)
    assert [lists(shard(batches[:4], rank, 2)) for rank in (0, 1)] == [[[0], [2]], [[1], [3]]]


@pytest.mark.parametrize("format", ["lists", "mmap"])
def test_padding(tmp_path, format):
    source, target = [[4, 2], [5, 6, 7, 2], [8, 9, 2]], [[4, 5, 6, 2], [7, 2], [8, 9, 2]]
    corpus = Corpus(source, target, DICTIONARY, DICTIONARY)
    if format == "mmap":
        from fairseq import indexed

        for name, side in {"s": source, "t": target}.items():
            indexed.write(tmp_path / name, map(numpy.array, side), "mmap", 10)
        corpus = Corpus(indexed.read(tmp_path / "s"), indexed.read(tmp_path / "t"), DICTIONARY, DICTIONARY)
    batch = collate(corpus, numpy.array([0, 1, 2]))
    assert batch.ids.tolist() == [1, 2, 0] and len(batch) == 3 and batch.ntokens == 9
    assert batch.source.tolist() == [[5, 6, 7, 2], [1, 8, 9, 2], [1, 1, 4, 2]]
    assert batch.target.tolist() == [[7, 2, 1, 1], [8, 9, 2, 1], [4, 5, 6, 2]]
    assert batch.decoder_input.tolist() == [[2, 7, 1, 1], [2, 8, 9, 1], [2, 4, 5, 6]]
    assert all(part.dtype == torch.int64 for part in (batch.source, batch.target, batch.decoder_input))


def test_padding_against_a_loop():
    random = numpy.random.RandomState(1)
    sides = [[[*random.randint(4, 50, size), 2] for size in random.randint(0, 9, 40)] for _ in range(2)]
    corpus = Corpus(*sides, DICTIONARY, DICTIONARY)
    batch = collate(corpus, random.permutation(40)[:25])
    sizes = [len(sides[0][row]) for row in batch.ids]
    assert sizes == sorted(sizes, reverse=True)
    for number, row in enumerate(batch.ids):
        source, target = sides[0][row], sides[1][row]
        assert batch.source[number].tolist() == [1] * (batch.source.shape[1] - len(source)) + source
        padding = [1] * (batch.target.shape[1] - len(target))
        assert batch.target[number].tolist() == target + padding
        assert batch.decoder_input[number].tolist() == [2] + target[:-1] + padding
    assert batch.ntokens == sum(len(sides[1][row]) for row in batch.ids)


def test_an_empty_batch_has_no_rows():
    batch = collate(EXAMPLE, numpy.zeros(0, numpy.int64))
    assert len(batch) == 0 and batch.ntokens == 0 and batch.source.shape[0] == 0


def test_moving_a_batch():
    batch = collate(EXAMPLE, [0, 1]).to("meta")
    assert {batch.source.device.type, batch.target.device.type, batch.decoder_input.device.type} == {"meta"}
    assert collate(make_corpus([3], None), [0]).to("meta").target is None
