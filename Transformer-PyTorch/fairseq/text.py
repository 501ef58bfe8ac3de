"""Text files: UTF-8, and lines that end in `\\n` (or `\\r\\n`), on every platform. No other character ends a line.

A byte order mark is no text: it is left out wherever one stands, as files with marks may have been put together.
"""

import codecs
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lab.cli import UserError

MARK = "\ufeff"


@contextmanager
def opened(name: str | Path) -> Iterator[BinaryIO]:
    """Open a file, or standard input for `-`.

    Raises:
        UserError: if it cannot be read.
    """
    if name == "-":
        if sys.stdin is None:
            raise UserError("standard input is closed; name a file, or send text through a pipe")
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from None
    with file:
        yield file


def name_of(name: str | Path) -> str | Path:
    """Return what messages call what `opened` opens."""
    return "standard input" if name == "-" else name


def read_lines(path: Path, *, keep_inner_marks: bool = False) -> Iterator[str]:
    """Yield the lines of a file, without the line ends.

    Args:
        path: the file.
        keep_inner_marks: leave byte order marks within the file as they are; the first one is no text in any case.

    Raises:
        UserError: if it cannot be read, or a line is not UTF-8.
    """
    with opened(path) as file:
        yield from decoded(file, path, keep_inner_marks=keep_inner_marks)


def decoded(
    lines: Iterable[bytes],
    name: object,
    *,
    keep_inner_marks: bool = False,
    otherwise: Callable[[UserError], str] | None = None,
) -> Iterator[str]:
    """Yield `lines` as text, without the line ends.

    Args:
        lines: the bytes of a text from its beginning.
        name: what messages call the text.
        keep_inner_marks: as for `read_lines`.
        otherwise: is told what is wrong with a line, and returns what is yielded in its place; by default it is raised.

    Raises:
        UserError: with `name` and the number of the line, if one is not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        try:
            if number == 1:
                _check_encoding(line, name)
                line = line.removeprefix(codecs.BOM_UTF8)
            text = _text(line, name, number)
        except UserError as error:
            if otherwise is None:
                raise
            text = otherwise(error)
        yield text if keep_inner_marks else text.replace(MARK, "")


def _text(line: bytes, name: object, number: int) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{name}, line {number}: not UTF-8; convert the file to UTF-8") from None


def _check_encoding(beginning: bytes, name: object) -> None:
    """Raise a `UserError` if a text begins as one of UTF-16 or UTF-32 does: with its mark, or every other byte zero."""
    marks = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if beginning.startswith(marks) or b"\0" in beginning[:4]:
        wide = beginning.startswith(marks[:2]) or beginning[:4].count(b"\0") == 3
        encoding = "UTF-32" if wide else "UTF-16"
        raise UserError(f"{name} is {encoding}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 OLD > NEW")


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, the last one counted also where its end is missing.

    Raises:
        UserError: if the file cannot be read, is empty, or is seen not to be UTF-8 by how it begins.
    """
    lines, last = 0, b""
    with opened(path) as file:
        while chunk := file.read(1 << 20):
            if not last:
                _check_encoding(chunk, path)
            lines, last = lines + chunk.count(b"\n"), chunk
    if not last:
        raise UserError(f"{path} is empty; it must have one sentence per line")
    return lines + (not last.endswith(b"\n"))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file, each line with its end."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
