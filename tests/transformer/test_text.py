"""Reading text: marks of byte order, other encodings, ends of lines."""

import codecs
import io
import sys

import pytest
from fairseq.dictionary import Dictionary
from fairseq.text import count_lines, decoded, opened, read_lines

from lab.cli import UserError

TEXT = "das Haus\nder Bär\n"


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(codecs.BOM_UTF8 + b"a b\r\n" + codecs.BOM_UTF8 + b"c\nd " + codecs.BOM_UTF8 + b"e\n")
    assert list(read_lines(path)) == ["a b", "c", "d e"]
    assert list(read_lines(path, keep_inner_marks=True)) == ["a b", "\ufeffc", "d \ufeffe"]
    path.write_bytes(codecs.BOM_UTF8)
    assert list(read_lines(path)) == [""]


def test_words_of_a_dictionary_are_as_they_were_numbered(tmp_path):
    """A dictionary counted over text with marks has words with marks, and the models made with it need them."""
    path = tmp_path / "dict.de.txt"
    path.write_text("\ufeffdas 3\n\ufeffder 2\nder 1\n", encoding="utf-8")
    assert Dictionary.load(path).symbols[4:] == ["das", "\ufeffder", "der"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_wide_encodings_are_recognized(tmp_path, encoding):
    (tmp_path / "text").write_bytes(TEXT.encode(encoding))
    name = encoding[:6].upper()
    for read in (lambda path: list(read_lines(path)), count_lines):
        with pytest.raises(UserError, match=f"text is {name}, not UTF-8; convert it: iconv -f {name} -t UTF-8"):
            read(tmp_path / "text")


def test_other_encodings_name_the_line(tmp_path):
    (tmp_path / "text").write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(UserError, match="text, line 2: not UTF-8; convert the file to UTF-8"):
        list(read_lines(tmp_path / "text"))


def test_a_line_that_cannot_be_read_may_be_replaced():
    told = []

    def otherwise(error: UserError) -> str:
        told.append(str(error))
        return "?"

    lines = io.BytesIO(codecs.BOM_UTF16_LE + b"\nb\n\xff\nd")
    assert list(decoded(lines, "input", otherwise=otherwise)) == ["?", "b", "?", "d"]
    assert len(told) == 2 and "UTF-16" in told[0] and told[1].startswith("input, line 3: not UTF-8")


def test_a_closed_standard_input_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed; name a file"), opened("-"):
        pass


def test_an_error_of_the_reader_is_not_one_of_the_file(tmp_path):
    (tmp_path / "text").write_text("a\n")
    with pytest.raises(BrokenPipeError), opened(tmp_path / "text"):
        raise BrokenPipeError
    with pytest.raises(UserError, match="cannot read .*nowhere: No such file"), opened(tmp_path / "nowhere"):
        pass


def test_lines_are_counted_to_the_end(tmp_path):
    path = tmp_path / "text"
    for content, count in ((b"a\nb\n", 2), (b"a\nb", 2), (codecs.BOM_UTF8 + b"a", 1)):
        path.write_bytes(content)
        assert count_lines(path) == count
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        count_lines(path)
