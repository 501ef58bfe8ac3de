"""Text files: UTF-8, and lines that end in `\\n` (or `\\r\\n`), on every platform. No other character ends a line."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from lab.cli import UserError


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, without the line ends.

    Raises:
        UserError: if it cannot be read, or a line is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            yield from decoded(file, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def decoded(lines: Iterable[bytes], name: object) -> Iterator[str]:
    """Yield `lines` as text, without the line ends.

    Raises:
        UserError: with `name` and the number of the line, if one is not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number}: not UTF-8; convert the file to UTF-8") from None


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, the last one counted also where its end is missing.

    Raises:
        UserError: if the file cannot be read, or is empty.
    """
    lines, last = 0, b""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                lines, last = lines + chunk.count(b"\n"), chunk
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not last:
        raise UserError(f"{path} is empty; it must have one sentence per line")
    return lines + (not last.endswith(b"\n"))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file, each line with its end."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def join_subwords(text: str, mark: str | None) -> str:
    """Return `text` with the pieces of words joined: `mark`, such as `"@@ "`, follows a piece that is not the last."""
    return (text + " ").replace(mark, "").rstrip() if mark else text  # the space: a mark may also end the line
