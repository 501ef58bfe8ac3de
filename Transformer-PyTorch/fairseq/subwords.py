"""Pieces of words, and what stands for words that are unknown."""

UNKNOWN, UNKNOWN_REFERENCE = "<unk>", "\N{DOUBLE QUESTION MARK}"
"""What stands for an unknown word in a translation and in a reference: the two never match."""

# Names of ways to cut words, and the mark that they put between words; the pieces of a word have none.
_WORD_MARKS = {"sentencepiece": "\u2581", "wordpiece": "_", "letter": "|", "_EOW": "_EOW"}
# Names of marks that follow a piece which is not the last of its word.
_PIECE_MARKS = {"subword_nmt": "@@ ", "@@": "@@ "}


def join_subwords(text: str, how: str | None) -> str:
    """Return `text` with the pieces of words joined.

    Args:
        text: pieces, separated by spaces.
        how: `sentencepiece`, `wordpiece`, `letter` or `_EOW`, where a mark stands between words; `subword_nmt`, or
            a mark such as `"@@ "`, which follows a piece that is not the last of its word; None joins nothing.
    """
    if how in _WORD_MARKS:
        return " ".join(text.replace(" ", "").replace(_WORD_MARKS[how], " ").split())
    mark = _PIECE_MARKS.get(how, how)
    return (text + " ").replace(mark, "").rstrip() if mark else text  # the space: a mark may also end the line


HELP = (
    "join subwords before printing and scoring: sentencepiece, wordpiece, letter, or those that MARK marks "
    "(default '@@ ', as subword-nmt does)"
)
"""Of the flag that says how subwords are joined; its value is for `join_subwords`."""
