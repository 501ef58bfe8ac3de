"""Finding and loading the data of a folder."""

from pathlib import Path

import numpy
import pytest
from fairseq import indexed
from fairseq.corpus import Corpus, find_languages, load_dictionaries, load_split
from fairseq.dictionary import Dictionary

from lab.cli import UserError

GERMAN, ENGLISH = Dictionary(["ein", "haus"]), Dictionary(["a", "house", "big"])


def write(folder: Path, name: str, sentences: list[list[int]], format: str = "mmap") -> None:
    indexed.write(folder / name, map(numpy.array, sentences), format, 7)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Data of German and English: two splits, the first in two parts and of both formats."""
    GERMAN.save(tmp_path / "dict.de.txt")
    ENGLISH.save(tmp_path / "dict.en.txt")
    write(tmp_path, "train.de-en.de", [[4, 5, 2], [5, 2]])
    write(tmp_path, "train.de-en.en", [[4, 5, 2], [6, 5, 2]])
    write(tmp_path, "train1.de-en.de", [[4, 2]], "legacy")
    write(tmp_path, "train1.de-en.en", [[4, 2]], "legacy")
    write(tmp_path, "valid.de-en.de", [[5, 2]])
    write(tmp_path, "valid.de-en.en", [[5, 2]])
    return tmp_path


def load(folder: Path, split: str, source: str = "de", target: str = "en", **options) -> Corpus:
    return load_split(folder, split, source, target, load_dictionaries(folder, source, target), **options)


@pytest.mark.parametrize("given", [(), ("de",), ("de", "en"), (None, "en")])
def test_languages_follow_from_the_names(folder, given):
    assert find_languages(folder, *given) == ("de", "en")


@pytest.mark.parametrize("given", [("en",), (None, "de"), ("en", "de")])
def test_data_of_the_other_direction(folder, given):
    assert find_languages(folder, *given) == ("en", "de")
    corpus = load(folder, "train", "en", "de")
    assert corpus.source[1].tolist() == [6, 5, 2] and corpus.target[1].tolist() == [5, 2]
    assert corpus.source_dictionary.symbols == ENGLISH.symbols


def test_languages_with_hyphens(tmp_path):
    for language in ("pt-BR", "zh-Hans"):
        write(tmp_path, f"train.pt-BR-zh-Hans.{language}", [[2]])
    assert find_languages(tmp_path) == ("pt-BR", "zh-Hans")


def test_several_pairs_must_be_told_apart(folder):
    write(folder, "test.fr-en.fr", [[2]])
    for given in [(), (None, "en")]:
        with pytest.raises(UserError, match="with -s and -t: it has test, train, train1, valid of de-en, fr-en"):
            find_languages(folder, *given)
    assert find_languages(folder, "fr") == ("fr", "en")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [(("fr", "en"), "no data of fr and en"), (("fr",), "not of one pair"), ((None, "fr"), "de-en")],
)
def test_unknown_language(folder, given, complaint):
    with pytest.raises(UserError, match=complaint):
        find_languages(folder, *given)


def test_no_data(tmp_path):
    with pytest.raises(UserError, match="no binary files"):
        find_languages(tmp_path)
    with pytest.raises(UserError, match="no such folder: .*nowhere"):
        find_languages(tmp_path / "nowhere")


def test_training_data_may_have_several_parts(folder):
    corpus = load(folder, "train")
    assert [sentence.tolist() for sentence in corpus.source] == [[4, 5, 2], [5, 2], [4, 2]]
    assert [sentence.tolist() for sentence in corpus.target] == [[4, 5, 2], [6, 5, 2], [4, 2]]
    assert corpus.source_sizes.tolist() == [3, 2, 2] and corpus.target_sizes.tolist() == [3, 3, 2]
    assert len(corpus) == 3 and len(load(folder, "valid")) == 1 and len(load(folder, "train1")) == 1


def test_raw_text(folder):
    (folder / "test.de").write_text("ein  Haus\nhaus ein\n", encoding="utf-8")
    (folder / "test.en").write_text("a house\nbig\u2028house a\n", encoding="utf-8")  # not the end of a line
    corpus = load(folder, "test")
    assert [sentence.tolist() for sentence in corpus.source] == [[4, 3, 2], [5, 4, 2]]
    assert [sentence.tolist() for sentence in corpus.target] == [[4, 5, 2], [6, 5, 4, 2]]
    assert corpus.source_lines == ["ein  Haus", "haus ein"]
    assert load(folder, "valid").source_lines is None


def test_raw_text_of_fairseq(tmp_path):
    GERMAN.save(tmp_path / "dict.de.txt")
    ENGLISH.save(tmp_path / "dict.en.txt")
    (tmp_path / "train.de-en.de").write_text("ein haus\n")
    (tmp_path / "train.de-en.en").write_text("a house\n")
    (tmp_path / "train1.de-en.de").write_text("haus\n")
    (tmp_path / "train1.de-en.en").write_text("house\n")
    for given, pair in [((), ("de", "en")), (("en",), ("en", "de"))]:
        assert find_languages(tmp_path, *given) == pair
        corpus = load(tmp_path, "train", *pair)
        sides = {"de": [[4, 5, 2], [5, 2]], "en": [[4, 5, 2], [5, 2]]}
        assert [sentence.tolist() for sentence in corpus.source] == sides[pair[0]]
        assert [sentence.tolist() for sentence in corpus.target] == sides[pair[1]]
    assert corpus.source_lines == ["a house", "house"]
    with pytest.raises(UserError, match="has no valid in de: it has train, train1 of de-en"):
        load(tmp_path, "valid")


def test_text_of_one_language_does_not_go_with_numbers_of_the_other(folder):
    write(folder, "test.de-en.de", [[4, 2]])
    (folder / "test.en").write_text("a house\n")
    assert load(folder, "test", need_target=False).target is None
    with pytest.raises(UserError, match="has no test in en"):
        load(folder, "test")


def test_text_can_be_asked_for(folder):
    with pytest.raises(UserError, match="has no text valid.de"):
        load(folder, "valid", text=True)
    for language in ("de", "en"):
        (folder / f"valid.{language}").write_text("ein haus\n")
    assert load(folder, "valid").source[0].tolist() == [5, 2]
    assert load(folder, "valid", text=True).source[0].tolist() == [4, 5, 2]


def test_source_alone(folder):
    write(folder, "test.de-en.de", [[4, 2]])
    with pytest.raises(UserError, match="has no test in en"):
        load(folder, "test")
    corpus = load(folder, "test", need_target=False)
    assert corpus.target is None and corpus.target_sizes is None and len(corpus) == 1


@pytest.mark.parametrize(
    ("name", "sentences", "complaint"),
    [
        ("train1.de-en.en", [[4, 2], [4, 2]], r"train has \[2, 1\] sentences in de and \[2, 2\] in en"),
        ("train.de-en.en", [[4, 2], [7, 2]], "train.de-en.en.bin has word 7, its dictionary has 7"),
        ("train.de-en.de", [[4, 2], [5]], "train.de-en.de.bin has sentences without an end"),
    ],
)
def test_data_that_do_not_fit(folder, name, sentences, complaint):
    write(folder, name, sentences)
    with pytest.raises(UserError, match=complaint):
        load(folder, "train")


def test_negative_number(folder):
    write(folder, "valid.de-en.de", [[-1, 2]], "legacy")
    with pytest.raises(UserError, match="valid.de-en.de.bin has word -1"):
        load(folder, "valid")


def test_missing_split(folder):
    with pytest.raises(UserError, match="has no test in de: it has train, train1, valid of de-en"):
        load(folder, "test")


def test_missing_half_of_a_file(folder):
    (folder / "valid.de-en.en.idx").unlink()
    with pytest.raises(UserError, match="cannot read .*valid.de-en.en.idx"):
        load(folder, "valid")


def test_corpus_from_lists():
    corpus = Corpus([[4, 2], [5, 4, 2]], None, GERMAN, ENGLISH)
    assert corpus.source[1].tolist() == [5, 4, 2]
    with pytest.raises(ValueError, match="2 sentences with 1 translations"):
        Corpus([[2], [2]], [[2]], GERMAN, ENGLISH)
