"""What the parallel texts of the experiments consist of, and how each is split."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lab.cli import UserError

from .fetch import Files, lines
from .tokens import clean, tokenize

LANGUAGES = ("de", "en")

Text = dict[str, dict[str, list[str]]]  # lines by split and language; line i of one is the translation of the other's


@dataclass(frozen=True)
class Corpus:
    """A parallel text.

    Args:
        name: of the folder it goes into.
        mirrors: see `Files`.
        read: gives its text.
        merges: subwords are made by this many, unless asked otherwise.
        ratio: training pairs with more than this many times the tokens of the other side are dropped.
        valid_every: of the training pairs left, those whose number is a multiple of this become the validation set.
        pairs: how many there must be in the end, and how many more or fewer other tokenizers have given.
    """

    name: str
    mirrors: tuple[str, ...]
    read: Callable[[Files], Text]
    merges: int
    ratio: float
    valid_every: int
    pairs: dict[str, tuple[int, int]]


def _read_iwslt14(files: Files) -> Text:
    def read(name: str) -> list[str]:
        return lines(files.get(f"de-en/{name}", name, "de-en.tgz"), f"de-en/{name}")

    tests = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
    return {
        "train": {language: talks(read(f"train.tags.de-en.{language}")) for language in LANGUAGES},
        "test": {
            language: [line for test in tests for line in segments(read(f"IWSLT14.{test}.de-en.{language}.xml"))]
            for language in LANGUAGES
        },
    }


def talks(lines: list[str]) -> list[str]:
    """Return the text of IWSLT's training files: no lines of web address, number and keywords, titles without tags."""
    kept = (line for line in lines if not re.search("<(url|talkid|keywords)>", line))
    return [re.sub("</?(title|description)>", "", line) for line in kept]


def segments(lines: list[str]) -> list[str]:
    """Return the text of IWSLT's XML files, with plain apostrophes."""
    kept = (line for line in lines if "<seg id" in line)
    texts = (re.sub(r'<seg id="[0-9]*">\s*|\s*</seg>\s*', "", line) for line in kept)
    return [text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") for text in texts]


def _read_multi30k(files: Files) -> Text:
    names = {"train": ["train"], "valid": ["valid", "val"], "test": ["test_2016_flickr"], "test1": ["test_2017_flickr"]}

    def read(split: str, language: str) -> list[str]:
        return lines(files.get(*[f"{name}.{language}{ending}" for name in names[split] for ending in ("", ".gz")]))

    return {split: {language: read(split, language) for language in LANGUAGES} for split in names}


CORPORA = {
    "iwslt14": Corpus(
        "iwslt14.tokenized.de-en",
        (
            "https://dl.fbaipublicfiles.com/fairseq/data/iwslt14",
            "http://dl.fbaipublicfiles.com/fairseq/data/iwslt14",
            "https://wit3.fbk.eu/archive/2014-01/texts/de/en",
        ),
        _read_iwslt14,
        merges=25000,
        ratio=1.5,
        valid_every=23,
        pairs={"train": (160239, 20), "valid": (7283, 5), "test": (6750, 0)},
    ),
    # A sixth of the text of IWSLT, with a small vocabulary: 10,000 merges leave most words whole, hardly any unknown.
    "multi30k": Corpus(
        "multi30k.tokenized.de-en",
        ("https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw",),
        _read_multi30k,
        merges=10000,
        ratio=float("inf"),
        valid_every=0,
        pairs={"train": (29000, 0), "valid": (1014, 0), "test": (1000, 0), "test1": (1000, 0)},
    ),
}


def prepared(corpus: Corpus, files: Files, any_size: bool) -> Text:
    """Return the tokenized splits of `corpus`.

    Args:
        any_size: whether there may be other numbers of pairs than there should be.

    Raises:
        UserError: if `files` are not what they should be.
        RunError: if they cannot be downloaded.
    """
    text = corpus.read(files)
    for split, sides in text.items():
        counts = {language: len(lines) for language, lines in sides.items()}
        if len(set(counts.values())) > 1 or not all(counts.values()):
            raise UserError(f"{split} must have as many lines in one language as in the other, not {counts}")
    text = {
        split: {language: tokenize(lines, language, f"{split}.{language}") for language, lines in sides.items()}
        for split, sides in text.items()
    }
    pairs = clean(zip(*text["train"].values()), least=1, most=175, ratio=corpus.ratio)
    if corpus.valid_every:
        text["valid"] = _sides(pairs[corpus.valid_every - 1 :: corpus.valid_every])
        pairs = [pair for number, pair in enumerate(pairs, 1) if number % corpus.valid_every]
    text["train"] = _sides(pairs)
    found = {split: len(text[split][LANGUAGES[0]]) for split in corpus.pairs}
    if not any_size and any(abs(found[split] - wanted) > margin for split, (wanted, margin) in corpus.pairs.items()):
        wanted = {split: wanted for split, (wanted, _) in corpus.pairs.items()}
        raise UserError(f"there are {found} pairs, not {wanted}; get the files again, or accept them with --any-size")
    return text


def _sides(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {language: [pair[side] for pair in pairs] for side, language in enumerate(LANGUAGES)}
