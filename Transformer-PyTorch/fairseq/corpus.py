"""A folder of data, as `preprocess.py` or fairseq leaves it: languages, dictionaries and splits of sentence pairs."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy

from lab.cli import UserError

from . import folders, indexed
from .dictionary import Dictionary
from .indexed import Sentences
from .text import read_lines

_Side = tuple[Sentences, list[str] | None]
"""The sentences of a language and, where they were read from it, their text."""

# <split>.<pair>.<language>, with .idx or, where it is text, without; how pair divides, if languages have hyphens, is
# known from the language.
_NAME = re.compile(r"(?P<split>[^.]+)\.(?P<pair>.+-.+)\.(?P<language>[^.]+)")


class Corpus:
    """Sentence pairs, or sentences without translation.

    Args:
        source: arrays or lists of word numbers, each with the end of a sentence.
        target: as many, or None.
        source_dictionary, target_dictionary: what the numbers mean.
        source_lines, target_lines: the text, where the corpus was read from text.
    """

    def __init__(
        self,
        source: Iterable[Sequence[int]],
        target: Iterable[Sequence[int]] | None,
        source_dictionary: Dictionary,
        target_dictionary: Dictionary,
        source_lines: list[str] | None = None,
        target_lines: list[str] | None = None,
    ):
        self.source = source if isinstance(source, Sentences) else Sentences.of(source)
        self.target = target if target is None or isinstance(target, Sentences) else Sentences.of(target)
        self.source_dictionary, self.target_dictionary = source_dictionary, target_dictionary
        self.source_lines, self.target_lines = source_lines, target_lines
        if self.target is not None and len(self.source) != len(self.target):
            raise ValueError(f"{len(self.source)} sentences with {len(self.target)} translations")

    def __len__(self) -> int:
        return len(self.source)

    @property
    def source_sizes(self) -> numpy.ndarray:
        """(sentences,), int64: numbers of words, the end counted."""
        return self.source.sizes

    @property
    def target_sizes(self) -> numpy.ndarray | None:
        """(sentences,), int64, as `source_sizes`, or None."""
        return None if self.target is None else self.target.sizes


def find_languages(folder: Path, source: str | None = None, target: str | None = None) -> tuple[str, str]:
    """Return source and target language of the data in `folder`; a given one is kept, in either direction.

    Raises:
        UserError: if there are no such data, or they could be of several pairs.
    """
    if not Path(folder).is_dir():
        raise UserError(f"no such folder: {folder}; preprocess.py makes it")
    folders.check_whole(Path(folder))
    if source and target:
        if not all((Path(folder) / f"dict.{language}.txt").is_file() for language in (source, target)):
            raise UserError(f"{folder} has no data of {source} and {target}: {_contents(folder)}")
        return source, target
    pairs = _pairs(folder)
    given = source or target
    found = {pair for pair in pairs if source in (None, pair[0]) and target in (None, pair[1])}
    found = found or {pair[::-1] for pair in pairs if given in pair}
    if len(found) != 1:
        what = f"has data of several pairs with {given}" if found and given else "is not of one pair of languages"
        raise UserError(f"{folder} {what}; name both with -s and -t: {_contents(folder)}")
    return found.pop()


def load_dictionaries(folder: Path, source: str, target: str) -> tuple[Dictionary, Dictionary]:
    """Return the dictionaries of both languages.

    Raises:
        UserError: if one is missing or damaged.
    """
    return Dictionary.load(Path(folder) / f"dict.{source}.txt"), Dictionary.load(Path(folder) / f"dict.{target}.txt")


def load_split(
    folder: Path,
    split: str,
    source: str,
    target: str,
    dictionaries: tuple[Dictionary, Dictionary],
    *,
    text: bool = False,
    need_target: bool = True,
) -> Corpus:
    """Return a split: `train` with `train1`, `train2`, ..., or another, alone.

    Args:
        folder: where `preprocess.py` or fairseq has put it.
        split: its name.
        source, target: languages; data made for the other direction are used as well.
        dictionaries: of the two.
        text: read raw text, which is also read where there are no binary files.
        need_target: whether translations must be there; otherwise `target` is None where there are none.

    Raises:
        UserError: if it is missing, damaged, or not numbered by these dictionaries, or the sides differ in length.
    """
    folder = Path(folder)
    parts: list[tuple[_Side, _Side | None]] = []
    for number in itertools.count() if split == "train" else [0]:
        part = _load_part(folder, f"{split}{number or ''}", (source, target), dictionaries, text, need_target)
        if part is None:
            break
        parts.append(part)
    if not parts:
        raise UserError(f"{folder} has no {_missing(split, source, text)}: {_contents(folder)}")
    targets = [part for _, part in parts if part is not None]
    if targets:
        lengths = [[len(sentences) for sentences, _ in side] for side in ([part for part, _ in parts], targets)]
        if lengths[0] != lengths[1]:
            raise UserError(f"{folder}: {split} has {lengths[0]} sentences in {source} and {lengths[1]} in {target}")
    (source_sentences, source_lines), (target_sentences, target_lines) = (
        _join([part for part, _ in parts]),
        _join(targets),
    )
    return Corpus(source_sentences, target_sentences, *dictionaries, source_lines, target_lines)


def _load_part(
    folder: Path,
    split: str,
    pair: tuple[str, str],
    dictionaries: tuple[Dictionary, Dictionary],
    text: bool,
    need_target: bool,
) -> tuple[_Side, _Side | None] | None:
    """Return both sides of a split, the second of which may be missing, or None if there is no source."""
    forms = (_text,) if text else (_numbers, _text)
    for form in forms:
        source = form(folder, split, pair, pair[0], dictionaries[0])
        if source is not None:
            # In the same form: numbers beside text are of another run.
            target = form(folder, split, pair, pair[1], dictionaries[1])
            if target is None and need_target:
                raise UserError(f"{folder} has no {_missing(split, pair[1], form is _text)}: {_contents(folder)}")
            return source, target
    return None


def _missing(split: str, language: str, text: bool) -> str:
    return f"text {split}.{language}" if text else f"{split} in {language}"


def _join(parts: list[_Side]) -> _Side | tuple[None, None]:
    if not parts:
        return None, None
    (sentences, lines), *others = parts
    for more, more_lines in others:
        sentences = sentences.joined(more)
        lines = lines + more_lines if lines is not None and more_lines is not None else None
    return sentences, lines


def _numbers(folder: Path, split: str, pair: tuple[str, str], language: str, dictionary: Dictionary) -> _Side | None:
    """Return the sentences of one side that are there as numbers; None if there are no files."""
    for one, other in (pair, pair[::-1]):
        prefix = folder / f"{split}.{one}-{other}.{language}"
        if any(path.exists() for path in indexed.names(prefix)):
            sentences = indexed.read(prefix)
            _check(sentences, dictionary, prefix)
            return sentences, None
    return None


def _text(folder: Path, split: str, pair: tuple[str, str], language: str, dictionary: Dictionary) -> _Side | None:
    """Return the sentences of one side that are there as text, and the text; None if there is no file."""
    for infix in ("", *(f".{one}-{other}" for one, other in (pair, pair[::-1]))):  # the first is ours
        path = folder / f"{split}{infix}.{language}"
        if path.is_file():
            lines = list(read_lines(path))
            return Sentences.of(map(dictionary.encode, lines)), lines
    return None


def _check(sentences: Sentences, dictionary: Dictionary, prefix: Path) -> None:
    """Raise a `UserError` unless all numbers are in the dictionary and every sentence ends as it must."""
    values = sentences.values
    if len(values) and not (values.min() >= 0 and values.max() < len(dictionary)):
        wrong = values.max() if values.max() >= len(dictionary) else values.min()
        raise UserError(f"{prefix}.bin has word {wrong}, its dictionary has {len(dictionary)}; both must be of one run")
    full = sentences.sizes > 0
    if (values[(sentences.starts + sentences.sizes - 1)[full]] != dictionary.eos).any():
        raise UserError(f"{prefix}.bin has sentences without an end (</s>, {dictionary.eos}); run preprocess.py again")


def _names(folder: Path) -> Iterator[re.Match]:
    """Yield what the names of files with a pair of languages say."""
    return filter(None, (_NAME.fullmatch(path.name.removesuffix(".idx")) for path in Path(folder).iterdir()))


def _pair(match: re.Match) -> tuple[str, str] | None:
    """Return the pair of languages of a name, or None if it is that of no data."""
    pair, language = match["pair"], match["language"]
    if pair.startswith(f"{language}-"):
        return language, pair.removeprefix(f"{language}-")
    if pair.endswith(f"-{language}"):
        return pair.removesuffix(f"-{language}"), language
    return None


def _pairs(folder: Path) -> set[tuple[str, str]]:
    return set(filter(None, map(_pair, _names(folder))))


def _contents(folder: Path) -> str:
    """Say in a few words what data are in `folder`."""
    splits = {match["split"] for match in _names(folder) if _pair(match)}
    pairs = sorted("-".join(pair) for pair in _pairs(folder))
    if pairs:
        return f"it has {', '.join(sorted(splits))} of {', '.join(pairs)}"
    languages = sorted(path.name.split(".")[1] for path in Path(folder).glob("dict.*.txt"))
    texts = sorted(path.name for path in Path(folder).iterdir() if path.suffix.removeprefix(".") in languages)
    return f"it has the texts {', '.join(texts)}" if texts else "it has no binary files (.idx) of preprocess.py"
