"""From text to the folder of data that training and generation read."""

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy

from lab.cli import UserError
from lab.record import progress

from . import indexed
from .dictionary import RESERVED, Dictionary
from .text import count_lines, read_lines

_SPLIT_FILE = re.compile(r"(?P<split>(?:train|valid|test)\d*)\.(?:.+\.)?(?P<language>[^.]+?)(?:\.(?:idx|bin))?")


@dataclass(frozen=True)
class Settings:
    """What `preprocess.py` is asked for; its flags explain the fields.

    Args:
        splits: the beginning of the text files of each split, by its name: `{"train": "text/train"}` for
            `text/train.de`.
    """

    source: str
    target: str
    splits: dict[str, str]
    folder: Path = Path("data-bin")
    thresholds: tuple[int, int] = (0, 0)
    nwords: tuple[int, int] = (-1, -1)
    dictionaries: tuple[Path | None, Path | None] = (None, None)
    joined: bool = False
    only_source: bool = False
    alignment: Path | None = None
    format: str = "mmap"  # or legacy, or raw

    @property
    def languages(self) -> list[str]:
        """The languages to be written."""
        return [self.source] if self.only_source else [self.source, self.target]


def binarize(settings: Settings) -> None:
    """Write dictionaries and numbered sentences, all of them or none, and print what they have in numbers.

    Raises:
        UserError: if a text is missing, empty, no UTF-8 or not as long as its translation; if the folder holds
            other data that new dictionaries would make unreadable; if it cannot be written.
    """
    lengths = _check_texts(settings)
    with _whole(settings.folder) as folder:
        dictionaries = _dictionaries(settings, lengths)
        for language, dictionary in zip(settings.languages, dictionaries):
            dictionary.save(folder / f"dict.{language}.txt")
            print(f"[{language}] dictionary: {len(dictionary)} types, {len(RESERVED)} of them reserved")
            for split, prefix in settings.splits.items():
                text = Path(f"{prefix}.{language}")
                name = folder / f"{split}.{settings.source}-{settings.target}.{language}"
                if settings.format == "raw":
                    shutil.copyfile(text, folder / f"{split}.{language}")
                else:
                    lines = progress(read_lines(text), lengths[split], f"numbering {text.name}", is_main=True)
                    _number(name, lines, dictionary, settings.format, f"[{language}] {text}")
        if settings.alignment:
            lines = _alignments(settings, lengths["train"], *dictionaries)
            text = "".join(line + "\n" for line in lines)
            (folder / f"alignment.{settings.source}-{settings.target}.txt").write_bytes(text.encode())
        _check_folder(settings.folder, folder)


def _check_texts(settings: Settings) -> dict[str, int]:
    """Return the number of lines of each split, which must be the same in all languages."""
    lengths = {}
    for split, prefix in settings.splits.items():
        counted = {f"{prefix}.{language}": count_lines(Path(f"{prefix}.{language}")) for language in settings.languages}
        if len(set(counted.values())) > 1:
            (one, lines), (other, others) = counted.items()
            raise UserError(f"{one} has {lines} lines and {other} has {others}; line i must be the translation of line i")
        lengths[split] = min(counted.values())
    return lengths


def _dictionaries(settings: Settings, lengths: dict[str, int]) -> list[Dictionary]:
    """Return the dictionary of each language: given, counted over its training text, or over that of both."""

    def build(languages: Iterable[str], side: int) -> Dictionary:
        lines = (line for language in languages for line in _words(Path(f"{settings.splits['train']}.{language}")))
        return Dictionary.build(lines).truncated(settings.thresholds[side], settings.nwords[side])

    def _words(text: Path) -> Iterable[str]:
        return progress(read_lines(text), lengths["train"], f"counting {text.name}", is_main=True)

    if settings.joined:
        return [build((settings.source, settings.target), 0)] * len(settings.languages)
    return [
        Dictionary.load(given) if given else build([language], side)
        for side, (language, given) in enumerate(zip(settings.languages, settings.dictionaries))
    ]


def _number(prefix: Path, lines: Iterable[str], dictionary: Dictionary, format: str, label: str) -> None:
    """Write the numbers of `lines`, and print how many there are."""
    sentences = words = empty = unknown = 0

    def numbered() -> Iterator[numpy.ndarray]:
        nonlocal sentences, words, empty, unknown
        for line in lines:
            numbers = dictionary.encode(line)
            sentences += 1
            words += len(numbers)
            empty += len(numbers) == 1
            unknown += numpy.count_nonzero(numbers == dictionary.unk)
            yield numbers

    indexed.write(prefix, numbered(), format, len(dictionary))
    note = f", {empty} lines without words" if empty else ""
    print(f"{label}: {sentences} sentences, {words} tokens, {100 * unknown / words:.3g}% replaced by <unk>{note}")


def _alignments(settings: Settings, length: int, source: Dictionary, target: Dictionary) -> Iterator[str]:
    """Yield `word translation` for each source word: the target word that it is aligned with most often."""
    counts: dict[int, Counter[int]] = {}
    texts = [Path(f"{settings.splits['train']}.{language}") for language in settings.languages]
    if count_lines(settings.alignment) != length:
        raise UserError(f"{settings.alignment} must have as many lines as {texts[0]}, {length}")
    lines = zip(read_lines(settings.alignment), read_lines(texts[0]), read_lines(texts[1]))
    for number, (links, *sides) in enumerate(progress(lines, length, "aligning", is_main=True), 1):
        one, other = source.encode(sides[0])[:-1], target.encode(sides[1])[:-1]
        for link in links.split():
            match = re.fullmatch(r"(\d+)-(\d+)", link, re.ASCII)
            if not match or int(match[1]) >= len(one) or int(match[2]) >= len(other):
                raise UserError(
                    f"{settings.alignment}, line {number}: {link} is not a link i-j of one of {len(one)} source words "
                    f"(from 0) to one of {len(other)} target words"
                )
            pair = int(one[int(match[1])]), int(other[int(match[2])])
            if Dictionary.unk not in pair:
                counts.setdefault(pair[0], Counter())[pair[1]] += 1
    for word in sorted(counts):
        yield f"{source[word]} {target[counts[word].most_common(1)[0][0]]}"


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder, the files of which come into `folder` when all went well."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        for path in sorted(temporary.iterdir()):
            os.replace(path, folder / path.name)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_folder(folder: Path, new: Path) -> None:
    """Raise a `UserError` if the files in `new` would make other data in `folder` unreadable."""
    if not folder.exists():
        return
    old_files, new_files = ({path.name for path in place.iterdir()} for place in (folder, new))
    for name in sorted(old_files - new_files):
        match = _SPLIT_FILE.fullmatch(name)
        if not match:
            continue
        dictionary = f"dict.{match['language']}.txt"
        if dictionary not in old_files or dictionary not in new_files:
            continue
        if (folder / dictionary).read_bytes() != (new / dictionary).read_bytes():
            raise UserError(
                f"{folder} holds {name}, which needs the {dictionary} that is there and would be replaced; "
                "use another --destdir, or remove that folder"
            )
        if not name.endswith((".idx", ".bin")):
            continue
        if f"{match['split']}.{match['language']}" in new_files:
            raise UserError(f"{folder} holds {name}, which would be read in place of the raw text; use another --destdir")
