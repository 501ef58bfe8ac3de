"""Words and their numbers.

Numbers 0 to 3 are reserved and never written to a dictionary file: a placeholder, padding, the end of a sentence (with
which the decoder also starts) and unknown words. So the first line of a file `dict.<language>.txt` is number 4.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy

from lab.cli import UserError

from .subwords import UNKNOWN, join_subwords
from .text import read_lines, write_lines

RESERVED = ("<s>", "<pad>", "</s>", UNKNOWN)
_OVERWRITE = " #fairseq:overwrite"  # how fairseq marks a word that is spelled like an earlier one and takes its place


class Dictionary:
    """A numbered vocabulary with how often each word was seen.

    Args:
        words: ordinary words in the order of their numbers, the first of which is 4. A word that occurs twice, or is
            spelled like a reserved symbol, has all its numbers in `symbols` and is encoded by the last of them.
        counts: one for each of `words`; by default 0.
    """

    pad, eos, unk = 1, 2, 3

    def __init__(self, words: Iterable[str] = (), counts: Sequence[int] | None = None):
        words = list(words)
        self.symbols = [*RESERVED, *words]
        self.counts = [0] * len(RESERVED) + (list(counts) if counts is not None else [0] * len(words))
        if len(self.counts) != len(self.symbols):
            raise ValueError(f"{len(words)} words with {len(self.counts) - len(RESERVED)} counts")
        # Reserved symbols are not in here: text that spells one is text with an unknown word.
        self._numbers = {word: number for number, word in enumerate(words, len(RESERVED))}

    def __len__(self) -> int:
        return len(self.symbols)

    def __getitem__(self, number: int) -> str:
        return self.symbols[number]

    def index(self, word: str) -> int:
        """Return the number of `word`, or that of unknown words."""
        return self._numbers.get(word, self.unk)

    def encode(self, line: str) -> numpy.ndarray:
        """Return the numbers, int32, of the words of `line` (separated by white space) and of the end."""
        number, unknown = self._numbers.get, self.unk
        return numpy.array([*[number(word, unknown) for word in line.split()], self.eos], numpy.int32)

    def string(self, ids: Iterable[int], remove_bpe: str | None = None, unknown: str = UNKNOWN) -> str:
        """Return the words numbered `ids`, without padding and ends of sentences.

        Args:
            ids: numbers, also those in a tensor or array.
            remove_bpe: how subwords are joined, as for `subwords.join_subwords`.
            unknown: what stands for unknown words.
        """
        numbers = (int(number) for number in ids)
        words = [
            unknown if number == self.unk else self.symbols[number]
            for number in numbers
            if number not in (self.pad, self.eos)
        ]
        return join_subwords(" ".join(words), remove_bpe)

    def identity(self) -> dict:
        """Return `size` and `sha256`, which are the same for dictionaries that number all words alike."""
        return {"size": len(self), "sha256": hashlib.sha256("\n".join(self.symbols).encode()).hexdigest()}

    def truncated(self, threshold: int = 0, nwords: int = -1) -> "Dictionary":
        """Return the dictionary of the words seen at least `threshold` times, and of these the first `nwords`."""
        words, counts = self.symbols[len(RESERVED) :], self.counts[len(RESERVED) :]
        kept = [(word, count) for word, count in zip(words, counts) if count >= threshold]
        kept = kept if nwords < 0 else kept[:nwords]
        return Dictionary([word for word, _ in kept], [count for _, count in kept])

    @classmethod
    def build(cls, lines: Iterable[str]) -> "Dictionary":
        """Return the dictionary of the words in `lines`, the most frequent first and equals as they came."""
        seen: Counter[str] = Counter()
        for line in lines:
            seen.update(line.split())
        for symbol in RESERVED:
            seen.pop(symbol, None)
        ordered = sorted(seen.items(), key=lambda item: -item[1])
        return cls([word for word, _ in ordered], [count for _, count in ordered])

    def save(self, path: Path) -> None:
        """Write the dictionary file `path`: one `word count` per line."""
        seen, lines = set(RESERVED), []
        for word, count in zip(self.symbols[len(RESERVED) :], self.counts[len(RESERVED) :]):
            lines.append(f"{word} {count}{_OVERWRITE if word in seen else ''}")
            seen.add(word)
        write_lines(path, lines)

    @classmethod
    def load(cls, path: Path) -> "Dictionary":
        """Read a dictionary file, one of fairseq's own too.

        Raises:
            UserError: if there is none, a line is no `word count`, or a word occurs twice or is reserved and is not
                marked, as fairseq does, to take the place of the earlier one.
        """
        words, counts, seen = [], [], set(RESERVED)
        for number, line in enumerate(read_lines(path, keep_inner_marks=True), 1):
            marked = line.endswith(_OVERWRITE)
            word, _, count = line.removesuffix(_OVERWRITE).rpartition(" ")
            if not word or not count.isdecimal():
                raise UserError(f"{path}, line {number}: must be a word, a space and its count, not {line[:40]!r}")
            if word in seen and not marked:
                what = "is a reserved symbol" if word in RESERVED else "occurs twice"
                raise UserError(f"{path}, line {number}: {word} {what}; every line must have a word of its own")
            seen.add(word)
            words.append(word)
            counts.append(int(count))
        return cls(words, counts)
