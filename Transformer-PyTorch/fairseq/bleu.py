"""BLEU of a corpus, in two ways that must not be confused.

- `tokenized_bleu`: of the tokens as they are, which is what `multi-bleu` and the tables of many papers report.
- `sacre_bleu`: of ordinary text by sacreBLEU, which tokenizes both sides itself; comparable wherever its signature is
  the same.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU
from sacremoses import MosesDetokenizer

from lab.cli import UserError

from .subwords import UNKNOWN, UNKNOWN_REFERENCE

MAX_ORDER = 4
# sacreBLEU has tokenizers of their own for these languages, by two letters; what other standards call them.
_SPECIAL = {
    "zh": "zh",
    "ja": "ja",
    "ko": "ko",
    "zho": "zh",
    "chi": "zh",
    "cmn": "zh",
    "yue": "zh",
    "jpn": "ja",
    "kor": "ko",
}
_WIDE_PUNCTUATION = "\u3001-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_AROUND_WIDE = re.compile(f"(?<=[{_WIDE_PUNCTUATION}]) | (?=[{_WIDE_PUNCTUATION}])")


@dataclass(frozen=True)
class Score:
    """A score of 0 to 100 and what it was computed from."""

    score: float
    precisions: tuple[float, ...]
    """Percent, for n-grams of 1, 2, ... tokens."""
    brevity_penalty: float
    system_length: int
    reference_length: int
    signature: str
    """Of sacreBLEU: everything that the score depends on."""

    @property
    def ratio(self) -> float:
        """The length of the translations divided by that of the references; 0 if these are empty."""
        return self.system_length / self.reference_length if self.reference_length else 0.0

    def line(self) -> str:
        """Return the line that the toolkit prints."""
        return (
            f"BLEU{len(self.precisions)} = {self.score:.2f}, {'/'.join(f'{value:.1f}' for value in self.precisions)} "
            f"(BP={self.brevity_penalty:.3f}, ratio={self.ratio:.3f}, syslen={self.system_length}, "
            f"reflen={self.reference_length})"
        )


def tokenized_bleu(
    system: Sequence[str], references: Sequence[str], order: int = MAX_ORDER, ignore_case: bool = False
) -> Score:
    """Return BLEU of tokens separated by white space, without smoothing: 0 if no n-gram of some length matches.

    Raises:
        UserError: if there are not as many references as translations, or none.
    """
    metric = BLEU(ignore_case, force=True, tokenize="none", smooth_method="none", max_ngram_order=order)
    return _score(metric, system, references)


def sacre_bleu(
    system: Sequence[str], references: Sequence[str], ignore_case: bool = False, language: str | None = None
) -> Score:
    """Return BLEU of detokenized text with sacreBLEU's default smoothing and its tokenization for `language`.

    Raises:
        UserError: if there are not as many references as translations, or none.
    """
    language = _SPECIAL.get(_base(language))
    try:
        metric = BLEU(ignore_case, force=True, trg_lang=language or "")  # force: no advice about tokenized text
    except RuntimeError:  # Japanese and Korean are cut into words by packages that may be missing
        install = f'pip install "sacrebleu[{language}]"'
        warnings.warn(f"sacreBLEU over characters, as its words of {language} need {install}", stacklevel=2)
        metric = BLEU(ignore_case, force=True, tokenize="char")
    return _score(metric, system, references)


def sacre_line(score: Score) -> str:
    """Return the line of a `sacre_bleu`, named so that it is not taken for the other one."""
    return f"sacreBLEU = {score.score:.2f} ({score.signature})"


def detokenize(lines: Iterable[str], language: str) -> list[str]:
    """Return ordinary text of lines tokenized the Moses way, with characters such as `&quot;` restored.

    Chinese and Japanese text has no spaces but around words of other scripts.
    """
    language = _SPECIAL.get(_base(language), language)
    detokenizer = MosesDetokenizer(lang=language)
    text = [detokenizer.detokenize(line.split(), unescape=True) for line in lines]
    return [_AROUND_WIDE.sub("", line) for line in text] if language in ("zh", "ja") else text


def without_matching_unknowns(system: Iterable[str], references: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return both with unknown words, as any program writes them, spelled so that they match nothing."""

    def spelled(lines: Iterable[str], mark: str) -> list[str]:
        return [re.sub(rf"(?<!\S)(?:{UNKNOWN}|{UNKNOWN_REFERENCE})(?!\S)", mark, line) for line in lines]

    return spelled(system, UNKNOWN), spelled(references, UNKNOWN_REFERENCE)


def _base(language: str | None) -> str:
    """Return the language of a code such as `zh-CN` or `ja_JP`."""
    return re.split("[-_]", language or "")[0].lower()


def _score(metric: BLEU, system: Sequence[str], references: Sequence[str]) -> Score:
    if len(system) != len(references):
        raise UserError(f"{len(system)} translations with {len(references)} references: each needs exactly one")
    if not system:
        raise UserError("there is nothing to score: no translations")
    found = metric.corpus_score(system, [references])
    lengths = found.sys_len, found.ref_len
    return Score(found.score, tuple(found.precisions), found.bp, *lengths, str(metric.get_signature()))
