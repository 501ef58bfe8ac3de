"""Tokenizing as the Moses scripts do, cleaning pairs, and cutting words into subwords."""

import contextlib
import io
import sys
from collections.abc import Iterable

from sacremoses import MosesTokenizer
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

from lab.cli import UserError
from lab.record import progress


def tokenize(lines: list[str], language: str, label: str) -> list[str]:
    """Return `lines` in lower case, with tokens separated by spaces and characters special to Moses escaped."""
    tokenizer = MosesTokenizer(language)
    return [
        tokenizer.tokenize(line, return_str=True).lower()
        for line in progress(lines, len(lines), f"tokenizing {label}", is_main=True)
    ]


def clean(pairs: Iterable[tuple[str, str]], least: int, most: int, ratio: float) -> list[tuple[str, str]]:
    """Return the pairs with `least` to `most` tokens on both sides, neither having over `ratio` times the other's."""
    kept = []
    for pair in pairs:
        shorter, longer = sorted(len(side.split()) for side in pair)
        if least <= shorter and longer <= most and longer <= ratio * shorter:
            kept.append(pair)
    return kept


def learn(lines: Iterable[str], merges: int) -> list[str]:
    """Return the lines of a subword-nmt code file, with at most `merges` merges learned from `lines`.

    Raises:
        UserError: if there is nothing to merge.
    """
    code = io.StringIO()
    # The bar of learn_bpe does not look whether it is on a terminal.
    quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            learn_bpe(lines, code, merges)
    except ValueError:
        raise UserError("the training text has no words of two letters from which subwords could be learned") from None
    return code.getvalue().rstrip("\n").split("\n")


class Segmenter:
    """Cuts words into subwords, all but the last of which end in `@@`. Each word is looked at once."""

    def __init__(self, code: list[str]):
        self._bpe = BPE(io.StringIO("\n".join(code) + "\n"))

    def __call__(self, lines: list[str], label: str) -> list[str]:
        """Return `lines` with subwords separated by spaces."""
        return [self._bpe.segment(line) for line in progress(lines, len(lines), f"cutting {label}", is_main=True)]
