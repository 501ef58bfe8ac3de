"""Both binary formats, byte for byte, and what is said of damaged files."""

import struct
from pathlib import Path

import numpy
import pytest
from fairseq import indexed
from fairseq.indexed import Sentences

from lab.cli import UserError

SENTENCES = [[4, 5, 2], [2], [6, 70, 3, 2]]

# Written by hand from the descriptions of the formats: 3 sentences of sizes 3, 1, 4.
LEGACY = {
    "idx": b"TNTIDX\x00\x00"
    + struct.pack("<QQQQQ", 1, 4, 4, 3, 3)
    + struct.pack("<4q", 0, 1, 2, 3)
    + struct.pack("<4q", 0, 3, 4, 8)
    + struct.pack("<3q", 3, 1, 4),
    "bin": struct.pack("<8i", 5, 6, 3, 3, 7, 71, 4, 3),  # one more than the numbers
}
MAPPED = {
    "idx": b"MMIDIDX\x00\x00"
    + struct.pack("<QBQ", 1, 8, 3)
    + struct.pack("<3i", 3, 1, 4)
    + struct.pack("<3q", 0, 6, 8),
    "bin": struct.pack("<8H", 4, 5, 2, 2, 6, 70, 3, 2),
}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for ending, content in files.items():
        (folder / f"train.de-en.de.{ending}").write_bytes(content)
    return folder / "train.de-en.de"


def lists(sentences: Sentences) -> list[list[int]]:
    return [sentence.tolist() for sentence in sentences]


@pytest.mark.parametrize("files", [LEGACY, MAPPED], ids=["legacy", "mmap"])
def test_reads_bytes_written_by_hand(tmp_path, files):
    sentences = indexed.read(put(tmp_path, files))
    assert lists(sentences) == SENTENCES
    assert len(sentences) == 3 and sentences.sizes.tolist() == [3, 1, 4]


@pytest.mark.parametrize(("format", "files"), [("legacy", LEGACY), ("mmap", MAPPED)])
def test_writes_the_same_bytes(tmp_path, format, files):
    indexed.write(tmp_path / "a.b", map(numpy.array, SENTENCES), format, vocabulary=71)
    assert {ending: (tmp_path / f"a.b.{ending}").read_bytes() for ending in ("idx", "bin")} == files


@pytest.mark.parametrize(("code", "letter"), list(zip([1, 2, 3, 4, 5, 8, 9, 10], "BbhiqHIQ")))
def test_reads_every_integer_type(tmp_path, code, letter):
    size = struct.calcsize(f"<{letter}")
    idx = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, 2) + struct.pack("<2i2q", 2, 1, 0, 2 * size)
    prefix = put(tmp_path, {"idx": idx, "bin": struct.pack(f"<3{letter}", 100, 2, 2)})
    assert lists(indexed.read(prefix)) == [[100, 2], [2]]
    if code <= 5:
        idx = b"TNTIDX\x00\x00" + struct.pack("<5Q8q", 1, code, size, 2, 2, 0, 1, 2, 0, 2, 3, 2, 1)
        prefix = put(tmp_path, {"idx": idx, "bin": struct.pack(f"<3{letter}", 101, 3, 3)})
        assert lists(indexed.read(prefix)) == [[100, 2], [2]]


def test_mapped_sentences_may_be_in_any_order(tmp_path):
    idx = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, 4, 3) + struct.pack("<3i3q", 1, 2, 1, 8, 0, 8)
    sentences = indexed.read(put(tmp_path, {"idx": idx, "bin": struct.pack("<3i", 7, 2, 9)}))
    assert lists(sentences) == [[9], [7, 2], [9]]


@pytest.mark.parametrize(("format", "vocabulary", "width"), [("mmap", 65499, 2), ("mmap", 65500, 4), ("legacy", 10, 4)])
def test_width_of_the_numbers(tmp_path, format, vocabulary, width):
    """65,500 is where fairseq changes the type."""
    sentences = [[vocabulary - 1, 2], [], [2]]
    indexed.write(tmp_path / "x", [numpy.array(sentence, numpy.int32) for sentence in sentences], format, vocabulary)
    assert (tmp_path / "x.bin").stat().st_size == 3 * width
    assert lists(indexed.read(tmp_path / "x")) == sentences


@pytest.mark.parametrize("format", indexed.FORMATS)
def test_no_sentences(tmp_path, format):
    indexed.write(tmp_path / "x", [], format, 10)
    assert lists(indexed.read(tmp_path / "x")) == []


def test_joining_keeps_both():
    first, second = Sentences.of([[4, 2], [2]]), Sentences.of([[5, 6, 2]])
    assert lists(first.joined(second)) == [[4, 2], [2], [5, 6, 2]]


def replaced(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


DAMAGE = {
    "legacy: index cut in its header": (LEGACY, {"idx": LEGACY["idx"][:30]}, "de.idx is truncated"),
    "legacy: index cut": (LEGACY, {"idx": LEGACY["idx"][:-8]}, "truncated or damaged: it has 128 bytes, not 136"),
    "legacy: values cut": (LEGACY, {"bin": LEGACY["bin"][:-2]}, "de.bin has 30 bytes, by .*de.idx it must have 32"),
    "legacy: values of another file": (LEGACY, {"bin": LEGACY["bin"] * 2}, "de.bin has 64 bytes"),
    "legacy: newer": (LEGACY, {"idx": replaced(LEGACY["idx"], 8, b"\x02")}, "version 2"),
    "legacy: unknown type": (LEGACY, {"idx": replaced(LEGACY["idx"], 16, b"\x08")}, "numbers of type 8"),
    "legacy: wrong width": (LEGACY, {"idx": replaced(LEGACY["idx"], 24, b"\x02")}, "type 4 have 4 bytes, not 2"),
    "legacy: two dimensions": (LEGACY, {"idx": replaced(LEGACY["idx"], 56, b"\x02")}, "several dimensions"),
    "legacy: sizes that do not fit": (LEGACY, {"idx": replaced(LEGACY["idx"], 112, b"\x02")}, "do not follow"),
    "mmap: index cut in its header": (MAPPED, {"idx": MAPPED["idx"][:20]}, "de.idx is truncated"),
    "mmap: index cut": (MAPPED, {"idx": MAPPED["idx"][:-1]}, "truncated or damaged: it has 61 bytes, not 62"),
    "mmap: values cut": (MAPPED, {"bin": MAPPED["bin"][:-2]}, "de.bin has 14 bytes, by .*de.idx it must have 16"),
    "mmap: values of another file": (MAPPED, {"bin": MAPPED["bin"] + b"\x04\x00"}, "de.bin has 18 bytes"),
    "mmap: newer": (MAPPED, {"idx": replaced(MAPPED["idx"], 9, b"\x02")}, "version 2"),
    "mmap: unknown type": (MAPPED, {"idx": replaced(MAPPED["idx"], 17, b"\x0b")}, "numbers of type 11"),
    "mmap: half a number": (MAPPED, {"idx": replaced(MAPPED["idx"], 46, b"\x05")}, "in the middle of a number"),
    "mmap: negative size": (MAPPED, {"idx": replaced(MAPPED["idx"], 26, b"\xff\xff\xff\xff")}, "has none"),
    "mmap: far away": (MAPPED, {"idx": replaced(MAPPED["idx"], 53, b"\x7e")}, "has none"),
    "neither format": (MAPPED, {"idx": b"PK\x03\x04" + bytes(60)}, "de.idx is not an index"),
    "empty index": (MAPPED, {"idx": b""}, "de.idx is not an index"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files(tmp_path, case):
    files, damage, complaint = DAMAGE[case]
    with pytest.raises(UserError, match=complaint):
        indexed.read(put(tmp_path, {**files, **damage}))


def test_fractions_are_no_words(tmp_path):
    idx = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, 7, 1) + struct.pack("<iq", 1, 0)
    with pytest.raises(UserError, match="fractional"):
        indexed.read(put(tmp_path, {"idx": idx, "bin": struct.pack("<d", 2.0)}))


@pytest.mark.parametrize("missing", ["idx", "bin"])
def test_missing_file(tmp_path, missing):
    prefix = put(tmp_path, MAPPED)
    Path(f"{prefix}.{missing}").unlink()
    with pytest.raises(UserError, match=f"cannot read .*train.de-en.de.{missing}"):
        indexed.read(prefix)
