"""The search against the published table, against the plain definition, and in batches against sentence by sentence."""

import math
from math import inf

import pytest
import torch
from fairseq.search import Hypothesis, SearchSettings, average, beam_search

from tests.transformer.scripted import EOS, PAD, UNK, A, B, Scripted, bigram, plain_search, random_logits

AB = [A, B]
TABLE = [
    ({}, [([A, B], -0.66749), ([A], -0.85740)]),
    ({"normalize": False}, [([A], -1.71480), ([A, B], -2.00248)]),
    ({"lenpen": 0.3}, [([A], -1.39285), ([A, B], -1.44023)]),
    ({"lenpen": 3.0}, [([A, B], -0.07417), ([A], -0.21435)]),
    ({"limit": 2}, [([A, B], -0.66749), ([A], -0.85740)]),
    ({"beam": 3}, [([A, B], -0.66749), ([A], -0.85740), ([B], -1.00124)]),
    ({"beam": 1}, [([A, B], -0.66749)]),
    ({"early_stop": False}, [([A, B], -0.66749), (AB * 2, -0.72238)]),
    ({"early_stop": False, "lenpen": 2.0}, [(AB * 5, -0.06975), (AB * 4 + [A, A], -0.08068)]),
]


def run(logits, sources, limit, *, prefix=None, generator=None, need_alignment=False, **settings):
    models = [Scripted(each) for each in (logits if isinstance(logits, list) else [logits])]
    limit = torch.tensor([limit] * len(sources) if isinstance(limit, int) else limit)
    prefix = None if prefix is None else torch.tensor(prefix)
    options = {"prefix": prefix, "generator": generator, "need_alignment": need_alignment}
    found = beam_search(models, torch.tensor(sources), limit, SearchSettings(**settings), **options)
    return found, models[0]


def plain(found: list[Hypothesis]) -> list[tuple]:
    return [(tuple(each.words), pytest.approx(each.score, abs=1e-9)) for each in found]


@pytest.mark.parametrize(("settings", "expected"), TABLE)
def test_bigram_table(settings, expected):
    settings = {"beam": 2, "limit": 10, **settings}
    (found,), _ = run(bigram, [[7, EOS]], **settings)
    assert [each.words for each in found] == [[*words, EOS] for words, _ in expected]
    assert [each.score for each in found] == pytest.approx([score for _, score in expected], abs=5e-6)


def test_log_probabilities_of_the_words():
    (found,), _ = run(bigram, [[7, EOS]], 10, beam=2)
    expected = [math.log(0.6), math.log(0.5), math.log(0.45)]
    assert found[0].log_probs == pytest.approx(expected, abs=1e-6)
    assert found[1].log_probs == pytest.approx([math.log(0.6), math.log(0.3)], abs=1e-6)


SOURCES = [[4 + (7 * row + column) % 5 for column in range(4)] + [EOS] for row in range(9)]
LIMITS = [6, 0, 5, 1, 6, 2, 3, 6, 4]


@pytest.mark.parametrize(
    "settings",
    [
        {"beam": 1},
        {"beam": 3},
        {"beam": 5},
        {"beam": 8},  # all of nine words
        {"beam": 3, "normalize": False},
        {"beam": 4, "lenpen": 2.5},
        {"beam": 4, "lenpen": 0.0},
        {"beam": 3, "unkpen": 1.5},
        {"beam": 3, "unkpen": -3.0},
        {"beam": 3, "early_stop": False},
        {"beam": 3, "early_stop": False, "normalize": False},
        {"beam": 4, "early_stop": False, "lenpen": 2.0},
        {"beam": 3, "min_len": 4},
        {"beam": 3, "min_len": 2, "early_stop": False},
        {"beam": 3, "temperature": 0.4},
    ],
)
@pytest.mark.parametrize(("size", "seed"), [(9, 0), (9, 1), (53, 0), (64, 0)])
def test_a_batch_gives_what_the_definition_gives_for_each_sentence(settings, size, seed):
    logits = random_logits(size, seed)
    found, model = run(logits, SOURCES, LIMITS, **settings)
    for source, limit, each in zip(SOURCES, LIMITS, found):
        assert plain(each) == plain_search(logits, tuple(source), limit, **settings)
    assert model.rows[:2] == [len(SOURCES), (len(SOURCES) - 1) * settings["beam"]]  # one has no room for words


def test_sentences_that_are_done_leave_the_batch():
    logits = random_logits(9, 1)
    found, model = run(logits, SOURCES, LIMITS, beam=2)
    steps = [run(logits, [source], limit, beam=2)[1].rows for source, limit in zip(SOURCES, LIMITS)]
    expected = [sum(rows[t] for rows in steps if t < len(rows)) for t in range(max(map(len, steps)))]
    assert model.rows == expected
    assert model.rows[-1] < model.rows[1]
    assert all(found)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_prefix_is_followed(beam):
    logits = random_logits(9)
    prefix = [[5, 4], [6, EOS], [EOS, PAD], [7, PAD], [UNK, 8]]  # too short, empty, one word, unknown word
    found, _ = run(logits, SOURCES[:5], 5, prefix=prefix, beam=beam)
    wanted = [(5, 4), (6, EOS), (), (7,), (UNK, 8)]
    for source, words, each in zip(SOURCES, wanted, found):
        assert plain(each) == plain_search(logits, tuple(source), 5, beam, prefix=words)
        assert {tuple(hypothesis.words[: len(words)]) for hypothesis in each} == {words}
        assert len({tuple(hypothesis.words) for hypothesis in each}) == len(each)
    assert len(found[1]) == 1


def test_an_ensemble_averages_probabilities():
    one, two = random_logits(9, 1), random_logits(9, 2)

    def mean(source, words):
        return (0.5 * (one(source, words).softmax(-1) + two(source, words).softmax(-1))).log()

    found, _ = run([one, two], SOURCES, 5, beam=3)
    assert [plain(each) for each in found] == [plain_search(mean, tuple(source), 5, 3) for source in SOURCES]
    same, _ = run([one, one], SOURCES, 5, beam=3)
    alone, _ = run(one, SOURCES, 5, beam=3)
    assert [plain(each) for each in same] == [plain(each) for each in alone]
    log_probs = torch.tensor([0.2, 0.8]).log(), torch.tensor([0.6, 0.4]).log()
    assert average(log_probs).exp().tolist() == pytest.approx([0.4, 0.6])


def test_alignment_is_where_the_attention_is():
    found, _ = run(random_logits(9), SOURCES, 5, beam=3, need_alignment=True)
    for each in (hypothesis for sentence in found for hypothesis in sentence):
        before = [EOS, *each.words[:-1]]
        assert each.alignment == [sum(before[: t + 1]) % 5 for t in range(len(before))]
    without, _ = run(random_logits(9), SOURCES, 5, beam=3)
    assert without[0][0].alignment is None


# Sampling


@pytest.mark.parametrize("beam", range(9, 16))
def test_a_beam_of_almost_all_words(beam):
    """The first step has fewer continuations than twice the beam."""
    torch.manual_seed(0)
    table = torch.randn(16, 16)
    model = Scripted(lambda source, words: table[words[-1]])
    (found,) = beam_search([model], torch.tensor([[4, EOS]]), torch.tensor([2]), SearchSettings(beam=beam))
    assert len(found) == beam and len({tuple(hypothesis.words) for hypothesis in found}) == beam


def test_sixteen_bit_logits_give_single_precision_log_probabilities():
    """On a CPU, autocast does not see to it."""
    table = torch.randn(16, 16).bfloat16()
    model = Scripted(lambda source, words: table[words[-1]])
    (found,) = beam_search([model], torch.tensor([[4, EOS]]), torch.tensor([3]), SearchSettings(beam=2))
    words = [EOS, *found[0].words]
    expected = [table[a].double().log_softmax(0)[b].item() for a, b in zip(words, words[1:])]
    assert found[0].log_probs == pytest.approx(expected, rel=1e-5)


def test_samples_follow_the_distribution():
    generator = torch.Generator().manual_seed(3)
    found, _ = run(bigram, [[7, EOS]] * 40, 3, beam=50, sampling=True, generator=generator)
    samples = [tuple(each.words) for sentence in found for each in sentence]
    assert len(samples) == 2000
    first = sum(words[0] == A for words in samples) / 2000
    assert first == pytest.approx(0.6 / 0.9, abs=0.04)  # without the end, as no translation is empty
    after_a = [words[1] for words in samples if words[0] == A]
    assert after_a.count(B) / len(after_a) == pytest.approx(0.5, abs=0.05)
    assert after_a.count(EOS) / len(after_a) == pytest.approx(0.3, abs=0.05)
    assert {len(words) for words in samples} == {2, 3, 4}
    for each in found[0]:
        assert each.score == pytest.approx(sum(each.log_probs) / len(each.words))


def drawn(probabilities: list[float], **settings) -> dict[int, float]:
    """Return how often every word came first in 4000 samples of two words, of which the second is the end."""
    logits = torch.tensor([*[-inf] * 4, *map(math.log, probabilities)])

    def model(source, words):
        return logits if len(words) == 1 else torch.tensor([-inf, -inf, 0.0, *[-inf] * (len(logits) - 3)])

    generator = torch.Generator().manual_seed(4)
    found, _ = run(model, [[7, EOS]] * 40, 3, beam=100, sampling=True, generator=generator, **settings)
    first = [each.words[0] for sentence in found for each in sentence]
    for each in found[0]:  # the score is of the whole distribution
        tempered = (logits / settings.get("temperature", 1.0)).log_softmax(0)
        assert each.log_probs[0] == pytest.approx(tempered[each.words[0]].item(), abs=1e-6)
    return {word - 4: first.count(word) / len(first) for word in set(first)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"topk": 1}, [1.0]),
        ({"topk": 2}, [4 / 7, 3 / 7]),
        ({"topk": 99}, [0.4, 0.3, 0.2, 0.1]),
        ({"topp": 0.39}, [1.0]),
        ({"topp": 0.41}, [4 / 7, 3 / 7]),
        ({"topp": 0.75}, [4 / 9, 3 / 9, 2 / 9]),
        ({"topp": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0.5, "topk": 2}, [16 / 25, 9 / 25]),
        ({"temperature": 0.5, "topp": 0.8}, [16 / 25, 9 / 25]),
    ],
)
def test_samples_of_the_likeliest_words(settings, expected):
    order = [2, 0, 3, 1]  # words are not sorted
    probabilities = [0.4, 0.3, 0.2, 0.1]
    found = drawn([probabilities[place] for place in order], **settings)
    assert {order[word]: share for word, share in found.items()} == pytest.approx(dict(enumerate(expected)), abs=0.03)


def test_samples_have_the_least_length():
    found, _ = run(bigram, [[7, EOS]] * 5, 6, beam=10, sampling=True, min_len=4)
    assert {len(each.words) - 1 for sentence in found for each in sentence} == {4, 5, 6}


def test_a_prefix_that_ends_early_and_the_least_length():
    found, _ = run(random_logits(9), SOURCES[:1], 5, prefix=[[6, EOS]], beam=2, min_len=3)
    assert plain(found[0]) == plain_search(random_logits(9), tuple(SOURCES[0]), 5, 2, min_len=3, prefix=(6,))


def test_a_model_whose_outputs_are_not_numbers_draws_nothing():
    assert run(lambda *_: torch.full((9,), math.nan), SOURCES[:2], 3, beam=2, sampling=True)[0] == [[], []]


def test_samples_depend_on_the_seed_alone_and_leave_out_the_first_two_symbols():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return run(lambda *_: torch.zeros(9), SOURCES, 6, beam=8, sampling=True, generator=generator)[0]

    assert draw(1) == draw(1) != draw(2)
    assert {word for sentence in draw(1) for each in sentence for word in each.words} == set(range(2, 9))
    assert all(len(sentence) == 8 for sentence in draw(1))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"beam": 0}, "at least"),
        ({"lenpen": -1.0}, "at least"),
        ({"min_len": 0}, "at least"),
        ({"temperature": 0.0}, "above 0"),
        ({"sampling": True, "topk": 0}, "at least"),
        ({"sampling": True, "topp": 1.5}, "from 0 to 1"),
        ({"topk": 3}, "need sampling"),
    ],
)
def test_settings_that_make_no_sense(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        SearchSettings(**settings)
