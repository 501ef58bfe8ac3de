"""Joining pieces of words: what was cut comes back."""

import pytest
from fairseq.subwords import join_subwords

SENTENCE = "the houses were red"


def cut(how: str) -> str:
    """Return the sentence in pieces of two letters."""
    words = [[word[i : i + 2] for i in range(0, len(word), 2)] for word in SENTENCE.split()]
    if how == "letter":
        return " | ".join(" ".join(word) for word in SENTENCE.split()) + " |"
    if how in ("sentencepiece", "wordpiece"):
        mark = {"sentencepiece": "\u2581", "wordpiece": "_"}[how]
        return " ".join(mark + " ".join(word) for word in words)
    if how == "_EOW":
        return " ".join(" ".join(word) + "_EOW" for word in words)
    mark = {"subword_nmt": "@@", "@@": "@@"}.get(how, how.rstrip())
    return " ".join(f"{mark} ".join(word) for word in words)


@pytest.mark.parametrize("how", ["sentencepiece", "wordpiece", "letter", "_EOW", "subword_nmt", "@@", "@@ ", "## "])
def test_pieces_are_joined(how):
    assert cut(how) != SENTENCE
    assert join_subwords(cut(how), how) == SENTENCE
    assert join_subwords(cut(how), None) == cut(how)
    assert join_subwords("", how) == ""


def test_a_mark_at_the_end_goes_too():
    assert join_subwords("a sev@@", "@@ ") == "a sev"
    assert join_subwords("\u2581a \u2581", "sentencepiece") == "a"
