"""From text to the folder of dictionaries and numbered sentences that training and generation read."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy

from lab.cli import UserError
from lab.record import progress

from . import folders, indexed
from .dictionary import RESERVED, Dictionary
from .text import count_lines, read_lines, write_lines


@dataclass(frozen=True)
class Settings:
    """What `preprocess.py` is asked for; its flags explain the fields. Pairs are of source and target.

    Args:
        splits: beginnings of file names by split: `{"train": "text/train"}` for `text/train.de` and `text/train.en`.
        format: `mmap` or `legacy` for numbers, or `raw` for the text.
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
    format: str = "mmap"

    @property
    def languages(self) -> list[str]:
        """The languages that are numbered."""
        return [self.source] if self.only_source else [self.source, self.target]

    def text(self, split: str, language: str) -> Path:
        """Return the path of a text."""
        return Path(f"{self.splits[split]}.{language}")


def write_numbered(settings: Settings) -> None:
    """Write dictionaries and numbered sentences, all of them or none, and print how many there are.

    Raises:
        UserError: if a text is missing, empty, not UTF-8 or not as long as its translation; if the folder holds
            other data that new dictionaries would make unreadable; if it cannot be written.
    """
    lengths = _check_texts(settings)
    with folders.whole(settings.folder, superseded=partial(_superseded, settings)) as folder:
        dictionaries = _dictionaries(settings, lengths)
        for language, dictionary in dictionaries.items():
            dictionary.save(folder / f"dict.{language}.txt")
            print(f"[{language}] dictionary: {len(dictionary)} types, {len(RESERVED)} of them reserved")
        for split in settings.splits:
            for language in settings.languages:
                if settings.format == "raw":
                    lines = _read(settings, split, language, lengths[split], "copying")
                    write_lines(folder / f"{split}.{language}", lines)
                else:
                    prefix = folder / f"{split}.{settings.source}-{settings.target}.{language}"
                    _number(settings, split, language, lengths[split], dictionaries[language], prefix)
        if settings.alignment:
            name = f"alignment.{settings.source}-{settings.target}.txt"
            write_lines(folder / name, _lexicon(settings, lengths["train"], dictionaries))


def _check_texts(settings: Settings) -> dict[str, int]:
    """Return the number of lines of each split, the same in all languages."""
    lengths = {}
    for split in settings.splits:
        texts = [settings.text(split, language) for language in settings.languages]
        counts = [count_lines(text) for text in texts]
        if len(set(counts)) > 1:
            raise UserError(
                f"{texts[0]} has {counts[0]} lines and {texts[1]} has {counts[1]}: "
                "each line must be the translation of the other file's line"
            )
        lengths[split] = counts[0]
    return lengths


def _dictionaries(settings: Settings, lengths: dict[str, int]) -> dict[str, Dictionary]:
    """Return the dictionary of each language: given, counted over its training text, or over that of both."""
    source, target = settings.dictionaries

    def build(languages: tuple[str, ...], side: int) -> Dictionary:
        texts = (_read(settings, "train", language, lengths["train"], "counting") for language in languages)
        return Dictionary.build(itertools.chain.from_iterable(texts)).truncated(
            settings.thresholds[side], settings.nwords[side]
        )

    both = (settings.source, settings.target)
    if settings.joined:
        given = source or target
        return dict.fromkeys(both, Dictionary.load(given) if given else build(both, 0))
    return {
        language: Dictionary.load(given) if given else build((language,), side)
        for side, (language, given) in enumerate(zip(both, (source, target)))
        if given or language in settings.languages
    }


def _read(settings: Settings, split: str, language: str, length: int, doing: str) -> Iterator[str]:
    """Return the lines of a text under a progress bar."""
    text = settings.text(split, language)
    return progress(read_lines(text), length, f"{doing} {text.name}", is_main=True)


def _number(settings: Settings, split: str, language: str, length: int, dictionary: Dictionary, prefix: Path) -> None:
    """Write the numbered sentences of a text, and print how many there are."""
    words = empty = unknown = 0

    def numbered() -> Iterator[numpy.ndarray]:
        nonlocal words, empty, unknown
        for line in _read(settings, split, language, length, "numbering"):
            numbers = dictionary.encode(line)
            words += len(numbers)
            empty += len(numbers) == 1
            unknown += numpy.count_nonzero(numbers == dictionary.unk)
            yield numbers

    indexed.write(prefix, numbered(), settings.format, len(dictionary))
    note = f", {empty} lines without words" if empty else ""
    replaced = f"{100 * unknown / words:.3g}% replaced by {RESERVED[Dictionary.unk]}"
    print(f"[{language}] {settings.text(split, language)}: {length} sentences, {words} tokens, {replaced}{note}")


def _lexicon(settings: Settings, length: int, dictionaries: dict[str, Dictionary]) -> Iterator[str]:
    """Yield `word translation` for each source word: the target word that it is aligned with most often."""
    source, target = dictionaries[settings.source], dictionaries[settings.target]
    texts = [settings.text("train", language) for language in settings.languages]
    if count_lines(settings.alignment) != length:
        raise UserError(f"{settings.alignment} must have a line for each of the {length} of {texts[0]}")
    counts: dict[int, Counter[int]] = {}
    lines = zip(read_lines(settings.alignment), *map(read_lines, texts))
    for number, (links, one, other) in enumerate(progress(lines, length, "aligning", is_main=True), 1):
        words, translations = source.encode(one)[:-1].tolist(), target.encode(other)[:-1].tolist()
        for link in links.split():
            match = re.fullmatch(r"(\d+)-(\d+)", link, re.ASCII)
            if not match or int(match[1]) >= len(words) or int(match[2]) >= len(translations):
                raise UserError(
                    f"{settings.alignment}, line {number}: {link} must be i-j, with i from 0 to {len(words) - 1} and "
                    f"j from 0 to {len(translations) - 1}"
                )
            pair = words[int(match[1])], translations[int(match[2])]
            if Dictionary.unk not in pair:
                counts.setdefault(pair[0], Counter())[pair[1]] += 1
    for word in sorted(counts):
        yield f"{source[word]} {target[counts[word].most_common(1)[0][0]]}"


# <split>.<language> is text, and so is, in folders of fairseq, <split>.<pair>.<language>; with .idx and .bin, numbers.
_DATA = re.compile(r"(?P<kind>train|valid|test)(?P<number>\d*)\.((?P<pair>.+)\.)?(?P<language>[^.]+)")


def _superseded(settings: Settings, new: Path) -> Iterator[str]:
    """Yield the names of the files in the folder that those in `new` take the place of, whatever their form.

    The splits `test`, `test1` and so on are one list, which is replaced as a whole; so with `valid`.

    Raises:
        UserError: if other files would be made unreadable, or be read together with the new ones.
    """
    folder, pair = settings.folder, (settings.source, settings.target)
    names = {"-".join(pair), "-".join(reversed(pair))}
    kinds = {split.rstrip("0123456789") for split in settings.splits}
    old_names, new_names = ({path.name for path in place.glob("*")} for place in (folder, new))
    for name in sorted(old_names - new_names):
        if name == f"alignment.{settings.source}-{settings.target}.txt" and "train" in kinds:
            yield name
        match = _DATA.fullmatch(name.removesuffix(".idx").removesuffix(".bin"))
        if not match:
            continue
        same_pair = match["pair"] in names or (match["pair"] is None and match["language"] in pair)
        if same_pair and match["kind"] in kinds:
            if match["kind"] == "train" and match["number"]:
                raise UserError(f"{folder / name} would be read as more of the new training data; remove it first")
            yield name
            continue
        dictionary = f"dict.{match['language']}.txt"
        replaced = dictionary in old_names & new_names
        if replaced and (folder / dictionary).read_bytes() != (new / dictionary).read_bytes():
            raise UserError(
                f"{folder / name} needs the {dictionary} beside it, which would be replaced by another; "
                "use another --destdir, or remove the old files"
            )
