"""The two formats of fairseq for numbered sentences: `<name>.bin` holds the numbers, `<name>.idx` where they are.

All values are little-endian. *Legacy*, which also the oldest versions read:

    .idx   8 bytes magic, u64 version = 1, u64 type, u64 bytes per number, u64 n sentences, u64 s sizes (= n),
           i64[n + 1] 0, 1, ..., n, i64[n + 1] where sentences begin, in numbers, i64[s] sizes
    .bin   the sentences back to back, each number one too large

*Memory-mapped*, which is opened without being read:

    .idx   9 bytes magic, u64 version = 1, u8 type, u64 n sentences, i32[n] sizes, i64[n] where they begin, in bytes
    .bin   the sentences, numbers as they are
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from lab.cli import UserError

FORMATS = ("mmap", "legacy")
_LEGACY, _MAPPED = b"TNTIDX\x00\x00", b"MMIDIDX\x00\x00"
_INTEGERS = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8"}
_LEGACY_TYPES = {**_INTEGERS, 6: "<f4", 7: "<f8"}
_MAPPED_TYPES = {**_INTEGERS, 6: "<f8", 7: "<f8", 8: "<u2", 9: "<u4", 10: "<u8"}


@dataclass(eq=False)
class Sentences(Sequence):
    """Sentences of numbers, kept back to back: number i is `values[starts[i] : starts[i] + sizes[i]]`.

    Args:
        values: (numbers,), of any integer type; may be mapped from a file.
        starts: (sentences,), int64.
        sizes: (sentences,), int64.
    """

    values: numpy.ndarray
    starts: numpy.ndarray
    sizes: numpy.ndarray

    @classmethod
    def of(cls, sentences: Iterable[Sequence[int]]) -> "Sentences":
        """Return the sentences given as arrays or lists."""
        arrays = [numpy.asarray(sentence, numpy.int64) for sentence in sentences]
        sizes = numpy.array([len(array) for array in arrays], numpy.int64)
        values = numpy.concatenate(arrays) if arrays else numpy.zeros(0, numpy.int64)
        return cls(values, numpy.cumsum(sizes) - sizes, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, position: int) -> numpy.ndarray:
        return self.values[self.starts[position] : self.starts[position] + self.sizes[position]]

    def joined(self, other: "Sentences") -> "Sentences":
        """Return these sentences and then those of `other`."""
        return Sentences(
            numpy.concatenate([self.values, other.values]),
            numpy.concatenate([self.starts, other.starts + len(self.values)]),
            numpy.concatenate([self.sizes, other.sizes]),
        )


def names(prefix: Path) -> tuple[Path, Path]:
    """Return the paths of the `.idx` and the `.bin` file of `prefix`, which may itself have dots."""
    return Path(f"{prefix}.idx"), Path(f"{prefix}.bin")


def write(prefix: Path, sentences: Iterable[numpy.ndarray], format: str, vocabulary: int) -> None:
    """Write `<prefix>.bin` and `<prefix>.idx`.

    Args:
        prefix: path without ending.
        sentences: arrays of numbers, which may be made while they are written.
        format: `mmap` or `legacy`.
        vocabulary: the numbers are below this; below 65,500 the mapped format takes two bytes for each, as in fairseq.
    """
    legacy = format == "legacy"
    code = 8 if not legacy and vocabulary < 65500 else 4
    dtype = numpy.dtype((_LEGACY_TYPES if legacy else _MAPPED_TYPES)[code])
    index, values = names(prefix)
    sizes = []
    with open(values, "wb") as file:
        for sentence in sentences:
            file.write((sentence + legacy).astype(dtype).tobytes())
            sizes.append(len(sentence))
    ends = numpy.cumsum([0, *sizes], dtype="<i8")
    with open(index, "wb") as file:
        if legacy:
            file.write(_LEGACY + struct.pack("<5Q", 1, code, dtype.itemsize, len(sizes), len(sizes)))
            file.write(numpy.arange(len(ends), dtype="<i8").tobytes() + ends.tobytes())
            file.write(numpy.array(sizes, "<i8").tobytes())
        else:
            file.write(_MAPPED + struct.pack("<QBQ", 1, code, len(sizes)))
            file.write(numpy.array(sizes, "<i4").tobytes() + (ends[:-1] * dtype.itemsize).tobytes())


def read(prefix: Path) -> Sentences:
    """Read `<prefix>.idx` and `<prefix>.bin` in either format. Mapped files stay on disk until they are used.

    Raises:
        UserError: if one is missing, is of neither format, is truncated, or does not fit the other.
    """
    index, values = names(prefix)
    try:
        content = index.read_bytes()
        length = values.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; run preprocess.py") from None
    if content.startswith(_LEGACY):
        dtype, starts, sizes = _legacy_index(index, content)
    elif content.startswith(_MAPPED):
        dtype, starts, sizes = _mapped_index(index, content)
    else:
        raise UserError(f"{index} is not an index of numbered sentences, or its first bytes are lost")
    if ((sizes < 0) | (starts < 0) | (starts > length)).any():
        raise UserError(f"{index} is damaged: a sentence is said to be where {values.name} has none")
    wanted = dtype.itemsize * int((starts + sizes).max(initial=0))
    if length != wanted:
        raise UserError(f"{values} has {length} bytes, by {index.name} it must have {wanted}; copy both files again")
    if dtype.kind == "f":
        raise UserError(f"{index} holds fractional numbers, not those of words")
    if content.startswith(_LEGACY):
        return Sentences(numpy.fromfile(values, dtype).astype(numpy.int64, copy=False) - 1, starts, sizes)
    # An empty file cannot be mapped.
    mapped = numpy.asarray(numpy.memmap(values, dtype, "r")) if length else numpy.zeros(0, dtype)
    return Sentences(mapped, starts, sizes)


def _legacy_index(path: Path, content: bytes) -> tuple[numpy.dtype, numpy.ndarray, numpy.ndarray]:
    """Return the type of the numbers, and where sentences start and how many numbers they have."""
    version, code, width, count, total = _header(path, content, "<8x5Q")
    dtype = _type(path, version, code, _LEGACY_TYPES)
    if width != dtype.itemsize:
        raise UserError(f"{path} is damaged: numbers of type {code} have {dtype.itemsize} bytes, not {width}")
    _check_length(path, content, 48 + 8 * (2 * (count + 1) + total))
    dimensions, starts, sizes = numpy.split(numpy.frombuffer(content, "<i8", offset=48), [count + 1, 2 * count + 2])
    if total != count or (dimensions != numpy.arange(count + 1)).any():
        raise UserError(f"{path} holds arrays of several dimensions, not sentences")
    if starts[0] or (numpy.diff(starts) != sizes).any():
        raise UserError(f"{path} is damaged: the sentences do not follow each other")
    return dtype, starts[:-1], sizes


def _mapped_index(path: Path, content: bytes) -> tuple[numpy.dtype, numpy.ndarray, numpy.ndarray]:
    version, code, count = _header(path, content, "<9xQBQ")
    dtype = _type(path, version, code, _MAPPED_TYPES)
    _check_length(path, content, 26 + 12 * count)
    sizes = numpy.frombuffer(content, "<i4", count, offset=26).astype(numpy.int64)
    places = numpy.frombuffer(content, "<i8", count, offset=26 + 4 * count)
    if (places % dtype.itemsize).any():
        raise UserError(f"{path} is damaged: a sentence starts in the middle of a number")
    return dtype, places // dtype.itemsize, sizes


def _header(path: Path, content: bytes, layout: str) -> tuple[int, ...]:
    if len(content) < struct.calcsize(layout):
        raise UserError(f"{path} is truncated: it has {len(content)} bytes; copy it again")
    return struct.unpack_from(layout, content)


def _type(path: Path, version: int, code: int, types: dict[int, str]) -> numpy.dtype:
    if version != 1 or code not in types:
        raise UserError(f"{path} is damaged, or newer: version {version}, numbers of type {code}")
    return numpy.dtype(types[code])


def _check_length(path: Path, content: bytes, wanted: int) -> None:
    if len(content) != wanted:
        raise UserError(f"{path} is truncated or damaged: it has {len(content)} bytes, not {wanted}; copy it again")
