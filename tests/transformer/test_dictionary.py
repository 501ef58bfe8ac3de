"""Dictionaries: numbers, files (fairseq's own too), and what a broken file is told."""

import numpy
import pytest
import torch
from fairseq.dictionary import Dictionary

from lab.cli import UserError


def test_the_most_frequent_word_is_number_4_and_equals_stay_in_order():
    dictionary = Dictionary.build(["b  a\tc", " a c d ", "c"])
    assert dictionary.symbols == ["<s>", "<pad>", "</s>", "<unk>", "c", "a", "b", "d"]
    assert dictionary.counts == [0, 0, 0, 0, 3, 2, 1, 1]
    assert len(dictionary) == 8 and dictionary[4] == "c" and dictionary.index("d") == 7
    assert (dictionary.pad, dictionary.eos, dictionary.unk) == (1, 2, 3)


def test_a_line_is_numbered_with_its_end():
    dictionary = Dictionary(["a", "b"])
    numbers = dictionary.encode("  b a\tx  b\n")
    assert numbers.dtype == numpy.int32 and numbers.tolist() == [5, 4, 3, 5, 2]
    assert dictionary.encode("").tolist() == [2]


def test_text_that_spells_a_reserved_symbol_is_an_unknown_word():
    dictionary = Dictionary.build(["a </s> <pad> <s> <unk>"])
    assert len(dictionary) == 5
    assert dictionary.encode("a </s> <pad> <s> <unk>").tolist() == [4, 3, 3, 3, 3, 2]


def test_numbers_become_words_without_padding_and_end():
    dictionary = Dictionary(["wun@@", "der", "bar"])
    ids = torch.tensor([1, 1, 4, 5, 3, 6, 2, 1])
    assert dictionary.string(ids) == "wun@@ der <unk> bar"
    assert dictionary.string(ids, "@@ ", unknown="?") == "wunder ? bar"
    assert dictionary.string([5, 4, 2], remove_bpe="@@ ") == "der wun"  # the mark at the end of a line goes, too
    assert dictionary.string([]) == ""


def test_file_holds_words_and_counts_alone(tmp_path):
    dictionary = Dictionary.build(["ä b b", "b #1 ä"])
    dictionary.save(tmp_path / "dict.de.txt")
    assert (tmp_path / "dict.de.txt").read_bytes() == "b 3\nä 2\n#1 1\n".encode()
    loaded = Dictionary.load(tmp_path / "dict.de.txt")
    assert (loaded.symbols, loaded.counts) == (dictionary.symbols, dictionary.counts)


def test_fairseq_file_with_padding_words_and_replaced_symbols(tmp_path):
    """A replaced symbol keeps its number; the word that takes its place has the number of its line."""
    text = "the 9\n<pad> 3 #fairseq:overwrite\na b 2\nthe 1 #fairseq:overwrite\nmadeupword0000 0\n"
    (tmp_path / "dict.txt").write_text(text)
    dictionary = Dictionary.load(tmp_path / "dict.txt")
    assert len(dictionary) == 9
    assert dictionary.symbols[4:] == ["the", "<pad>", "a b", "the", "madeupword0000"]
    assert dictionary.encode("the <pad> </s>").tolist() == [7, 5, 3, 2]
    dictionary.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_text() == text


def test_rare_words_are_left_out():
    dictionary = Dictionary.build(["a a a b b c c d"])
    assert dictionary.truncated(threshold=2).symbols[4:] == ["a", "b", "c"]
    assert dictionary.truncated(nwords=2).symbols[4:] == ["a", "b"]
    assert dictionary.truncated(2, 0).symbols[4:] == []
    assert dictionary.truncated().counts == dictionary.counts


def test_identity_is_that_of_the_numbering():
    one, counted, other = Dictionary(["a", "b"]), Dictionary(["a", "b"], [5, 1]), Dictionary(["b", "a"])
    assert one.identity() == counted.identity() != other.identity()
    assert one.identity()["size"] == 6
    assert Dictionary(["a b"]).identity() != Dictionary(["a", "b"]).identity()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a 3\nb\n", "line 2: must be a word, a space and its count, not 'b'"),
        (b"a 3\nb many\n", "line 2: must be a word"),
        (b"a -3\n", "line 1: must be a word"),
        (b"a 3\n\nb 2\n", "line 2: must be a word"),
        (b"a 3\nb 2\na 1\n", "line 3: a occurs twice"),
        (b"a 3\n</s> 2\n", "line 2: </s> is a reserved symbol"),
        (b"a 3\n\xff\xfe 2\n", "line 2: not UTF-8"),
    ],
)
def test_broken_file(tmp_path, content, complaint):
    (tmp_path / "dict.de.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"dict.de.txt, {complaint}"):
        Dictionary.load(tmp_path / "dict.de.txt")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read .*dict.de.txt: No such file"):
        Dictionary.load(tmp_path / "dict.de.txt")
