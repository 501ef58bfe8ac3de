"""preprocess.py: what it writes, that it keeps what must not be replaced, and what a mistake is told."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy
import preprocess
import pytest
from fairseq import indexed
from fairseq.corpus import find_languages, load_dictionaries, load_split

from tests.harness import one_line, snapshot

PROGRAM = "preprocess.py"

GERMAN = ["ein haus", "ein  kleines haus", "", "das haus ist klein"]
ENGLISH = ["a house", "a small house", "nothing", "the house is small"]


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    """The current folder, with training, validation and test texts, and some that are wrong."""
    monkeypatch.chdir(tmp_path)
    write("train", GERMAN, ENGLISH)
    write("valid", ["das haus"], ["the house"])
    write("test", ["das boot"], ["the boat"])
    write("short", GERMAN, ENGLISH[:-1])
    write("empty", [], [])
    Path("latin.de").write_bytes("ein haus\nein Bär\n".encode("latin-1"))
    Path("latin.en").write_text("a house\na bear\n")
    Path("alone.de").write_text("haus\n")
    Path("wide.de").write_text("ein haus\n", encoding="utf-16")
    Path("wide.en").write_text("a house\n")
    Path("links").write_text("0-0 1-1\n0-0 1-1 2-2\n\n0-0 1-1 2-2 3-3\n")
    Path("short_links").write_text("0-0\n")
    Path("far_links").write_text("0-0\n0-3\n\n\n")
    Path("broken_links").write_text("0-0\n0-1 1\n\n\n")
    Path("duplicate_dict").write_text("haus 3\nhaus 2\n")
    Path("file").write_text("")
    Path("notes").mkdir()
    return tmp_path


def write(name: str, german: list[str], english: list[str]) -> None:
    for language, lines in (("de", german), ("en", english)):
        Path(f"{name}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def call(*flags: str) -> None:
    preprocess.main(["-s", "de", "-t", "en", *" ".join(flags).split()])


def words(folder: str, split: str, **options) -> tuple[list[str], list[str]]:
    """Return the sentences of both sides, as their numbers tell them."""
    pair = find_languages(Path(folder), "de", "en")
    corpus = load_split(Path(folder), split, *pair, load_dictionaries(Path(folder), *pair), **options)
    sides = [(corpus.source_dictionary, corpus.source), (corpus.target_dictionary, corpus.target)]
    return tuple([dictionary.string(ids) for ids in sentences] for dictionary, sentences in sides)


@pytest.mark.parametrize("flags", ["", "--dataset-impl legacy", "--output-format raw"])
def test_text_comes_back(text, capsys, flags):
    call("--trainpref train --validpref valid,test --testpref test,valid", flags)
    assert words("data-bin", "train")[0] == [" ".join(line.split()) for line in GERMAN]
    assert words("data-bin", "train")[1] == ENGLISH
    assert words("data-bin", "valid") == (["das haus"], ["the house"])
    assert words("data-bin", "valid1") == words("data-bin", "test") == (["das <unk>"], ["the <unk>"])
    assert words("data-bin", "test1") == (["das haus"], ["the house"])
    assert Path("data-bin/dict.de.txt").read_text() == "haus 3\nein 2\nkleines 1\ndas 1\nist 1\nklein 1\n"
    output = capsys.readouterr().out
    assert "[de] dictionary: 10 types, 4 of them reserved" in output
    if not flags:
        assert "[de] train.de: 4 sentences, 13 tokens, 0% replaced by <unk>, 1 lines without words" in output
        assert "[de] test.de: 1 sentences, 3 tokens, 33.3% replaced by <unk>" in output
        assert not list(Path().glob(".*"))


def test_formats_on_disk(text):
    call("--trainpref train --destdir mapped")
    call("--trainpref train --destdir legacy --dataset-impl legacy")
    assert Path("mapped/train.de-en.de.idx").read_bytes().startswith(b"MMIDIDX\x00\x00")
    legacy = Path("legacy/train.de-en.de.bin").read_bytes()
    # haus is 4, ein 5, and the format adds one
    assert numpy.frombuffer(legacy, "<i4")[:3].tolist() == [6, 5, 3]
    names = [path.name for path in sorted(Path("mapped").iterdir())]
    endings = ("de.bin", "de.idx", "en.bin", "en.idx")
    assert names == ["dict.de.txt", "dict.en.txt", *(f"train.de-en.{ending}" for ending in endings)]


def test_limits_of_the_dictionaries(text):
    call("--trainpref train --thresholdsrc 2 --nwordstgt 1")
    assert Path("data-bin/dict.de.txt").read_text() == "haus 3\nein 2\n"
    assert Path("data-bin/dict.en.txt").read_text() == "house 3\n"
    assert words("data-bin", "train")[0][3] == "<unk> haus <unk> <unk>"


def test_given_dictionaries(text):
    call("--trainpref train")
    call("--testpref test --srcdict data-bin/dict.de.txt --tgtdict data-bin/dict.en.txt --destdir other")
    for language in ("de", "en"):
        assert Path(f"other/dict.{language}.txt").read_bytes() == Path(f"data-bin/dict.{language}.txt").read_bytes()
    assert words("other", "test") == (["das <unk>"], ["the <unk>"])


def test_joined_dictionary(text):
    Path("train.en").write_text("haus\nhaus\nx\nhaus\n")
    call("--trainpref train --joined-dictionary --nwordssrc 3")
    assert Path("data-bin/dict.de.txt").read_text() == "haus 6\nein 2\nkleines 1\n"
    assert Path("data-bin/dict.en.txt").read_text() == Path("data-bin/dict.de.txt").read_text()


def test_a_given_joined_dictionary_is_that_of_both(text):
    call("--trainpref train --joined-dictionary")
    given = Path("data-bin/dict.de.txt").read_bytes()
    for flag in ("--srcdict", "--tgtdict"):
        call(f"--testpref test --joined-dictionary {flag} data-bin/dict.de.txt --destdir {flag[2:]}")
        assert Path(flag[2:], "dict.de.txt").read_bytes() == Path(flag[2:], "dict.en.txt").read_bytes() == given


def test_a_byte_order_mark_is_no_word(text):
    call("--trainpref train --destdir plain")
    for language in ("de", "en"):
        path = Path(f"train.{language}")
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    call("--trainpref train --destdir marked")
    assert {path.name: path.read_bytes() for path in Path("marked").iterdir()} == {
        path.name: path.read_bytes() for path in Path("plain").iterdir()
    }
    call("--trainpref train --output-format raw --destdir raw")
    assert not Path("raw/train.de").read_bytes().startswith(b"\xef\xbb\xbf")
    Path("marked.txt").write_bytes(b"\xef\xbb\xbf" + Path("plain/dict.de.txt").read_bytes())
    call("--trainpref train --srcdict marked.txt --destdir given")
    assert Path("given/dict.de.txt").read_bytes() == Path("plain/dict.de.txt").read_bytes()


def test_source_alone(text):
    call("--trainpref train --validpref alone --only-source")
    assert sorted(path.name for path in Path("data-bin").glob("dict*")) == ["dict.de.txt"]
    Path("dict.en").write_text("house 1\n")
    call("--validpref alone --only-source --srcdict data-bin/dict.de.txt --tgtdict dict.en --destdir both")
    pair = ("de", "en")
    corpus = load_split(Path("both"), "valid", *pair, load_dictionaries(Path("both"), *pair), need_target=False)
    assert corpus.target is None and corpus.source[0].tolist() == [4, 2]


def test_lexicon_of_alignments(text):
    """haus is aligned with house three times; the dictionary leaves out what occurs once."""
    call("--trainpref train --alignfile links --thresholdsrc 2 --thresholdtgt 2")
    assert Path("data-bin/alignment.de-en.txt").read_text() == "haus house\nein a\n"


def test_running_again_replaces_the_data(text):
    call("--trainpref train --testpref test")
    before = snapshot(text)
    call("--trainpref train --testpref test")
    assert snapshot(text) == before
    write("train", GERMAN[:1], ENGLISH[:1])
    call("--trainpref train --testpref test --dataset-impl legacy")
    assert words("data-bin", "train") == (["ein haus"], ["a house"])
    assert words("data-bin", "test")[0] == ["<unk> <unk>"]


def test_adding_a_split_keeps_the_others(text):
    call("--trainpref train")
    before = snapshot(text)
    call("--testpref test --srcdict data-bin/dict.de.txt --tgtdict data-bin/dict.en.txt")
    assert snapshot(text).items() >= before.items()
    assert words("data-bin", "test")[0] == ["das <unk>"]


def names(folder: str, beginning: str) -> list[str]:
    return sorted(path.name for path in Path(folder).glob(f"{beginning}*"))


GIVEN = "--srcdict data-bin/dict.de.txt --tgtdict data-bin/dict.en.txt"


def test_references_of_an_older_test_set_go(text):
    call("--trainpref train --testpref test,valid")
    call(f"--testpref alone --only-source {GIVEN}")
    assert names("data-bin", "test") == ["test.de-en.de.bin", "test.de-en.de.idx"]
    assert names("data-bin", "train") and names("data-bin", "dict") == ["dict.de.txt", "dict.en.txt"]


@pytest.mark.parametrize(("first", "second"), [("raw", "binary"), ("binary", "raw")])
def test_data_of_the_other_format_go(text, first, second):
    call(f"--trainpref train --testpref test --output-format {first}")
    call(f"--testpref valid {GIVEN} --output-format {second}")
    assert words("data-bin", "test") == (["das haus"], ["the house"])
    assert words("data-bin", "train")[1] == ENGLISH
    assert len(names("data-bin", "test")) == {"raw": 2, "binary": 4}[second]


def test_a_lexicon_of_older_training_data_goes(text):
    call("--trainpref train --alignfile links")
    call("--trainpref train")
    assert not names("data-bin", "alignment")


def test_data_of_other_languages_stay(text):
    call("--trainpref train")
    for name in ("train", "test"):
        shutil.copy(f"{name}.de", f"{name}.nl")
    preprocess.main("-s nl -t en --trainpref train --testpref test --tgtdict data-bin/dict.en.txt".split())
    call(f"--trainpref train {GIVEN}")
    assert len(names("data-bin", "train.nl-en")) == len(names("data-bin", "train.de-en")) == 4
    assert len(names("data-bin", "test.nl-en")) == 4


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is done."""


@pytest.mark.parametrize("calls", range(12))
def test_killed_at_any_moment_old_and_new_are_never_mixed(text, monkeypatch, capsys, calls):
    call("--trainpref train --testpref test")
    before = snapshot(Path("data-bin"))
    write("train", GERMAN[::-1], ENGLISH[::-1])
    left = calls

    def counted(change):
        def changed(*args, **options):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return change(*args, **options)

        return changed

    again = "--trainpref train --testpref valid --output-format raw"
    with monkeypatch.context() as patch:
        for place, name in ((os, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "rmdir")):
            patch.setattr(place, name, counted(getattr(place, name)))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        try:
            call(again)
        except Killed:
            pass
        else:
            assert calls == 11  # the last one, at which nothing is left to do
    after = {path: content for path, content in snapshot(Path("data-bin")).items() if ".unfinished" not in str(path)}
    if calls == 0:
        assert after == before
    elif calls < 11:
        complaint = one_line(lambda: find_languages(Path("data-bin")), PROGRAM, capsys)
        assert "preprocess.py was stopped while it put data here; run it again" in complaint
    call(again)
    assert words("data-bin", "train") == ([" ".join(line.split()) for line in GERMAN[::-1]], ENGLISH[::-1])
    assert words("data-bin", "test") == (["das haus"], ["the house"])
    assert not names("data-bin", ".coming")


def test_a_failure_leaves_nothing_behind(text, monkeypatch, capsys):
    call("--trainpref train")
    before = snapshot(text)

    def fill_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(indexed, "write", fill_disk)
    for folder in ("data-bin", "new"):
        main = partial(call, f"--trainpref train --destdir {folder}")
        assert f"cannot write {folder}: the disk is full" in one_line(main, PROGRAM, capsys, status=1, printed=True)
    assert snapshot(text) == before


CASES = {
    "no text": ("", "no text given: --trainpref"),
    "no training text": ("--testpref test", "give --trainpref, or --srcdict and --tgtdict"),
    "one dictionary": ("--testpref test --srcdict duplicate_dict", "--srcdict and --tgtdict"),
    "missing text": ("--trainpref nowhere", "cannot read nowhere.de: No such file"),
    "missing translation": ("--trainpref alone", "cannot read alone.en: No such file"),
    "missing second test": ("--trainpref train --testpref test,nowhere", "cannot read nowhere.de"),
    "lengths": ("--trainpref train --validpref short", "short.de has 4 lines and short.en has 3"),
    "empty": ("--trainpref empty", "empty.de is empty"),
    "latin": ("--trainpref latin", "latin.de, line 2: not UTF-8"),
    "latin test": ("--trainpref train --testpref latin", "latin.de, line 2: not UTF-8"),
    "folder as text": ("--trainpref train --srcdict notes", "cannot read notes: Is a directory"),
    "missing dictionary": ("--trainpref train --srcdict nowhere", "cannot read nowhere"),
    "broken dictionary": ("--trainpref train --srcdict duplicate_dict", "duplicate_dict, line 2: haus occurs twice"),
    "joined and two": ("--trainpref train --joined-dictionary --srcdict file --tgtdict links", "give --srcdict alone"),
    "joined, given and limited": (
        "--trainpref train --joined-dictionary --tgtdict links --thresholdsrc 2",
        "leave out --thresholdsrc",
    ),
    "wide": ("--trainpref wide", "wide.de is UTF-16, not UTF-8; convert it: iconv"),
    "more training data": (
        "--trainpref train --destdir more",
        "more/train1.de-en.de.bin would be read as more of the new training data; remove it first",
    ),
    "joined and limited": ("--trainpref train --joined-dictionary --thresholdtgt 2", "--thresholdsrc and --nwordssrc"),
    "given and limited": ("--trainpref train --srcdict links --nwordssrc 5", "leave out --thresholdsrc"),
    "negative threshold": ("--trainpref train --thresholdsrc -1", "--thresholdsrc: must be an integer at least 0"),
    "same language": ("-t de --trainpref train", "are both de"),
    "language with a slash": ("-t e/n --trainpref train", "e/n"),
    "short alignment": ("--trainpref train --alignfile short_links", "short_links must have a line for each of the 4"),
    "alignment out of range": ("--trainpref train --alignfile far_links", "far_links, line 2: 0-3 must be i-j"),
    "broken alignment": ("--trainpref train --alignfile broken_links", "broken_links, line 2: 1 must be i-j"),
    "alignment without target": ("--trainpref train --alignfile links --only-source", "no --only-source"),
    "unknown format": ("--trainpref train --dataset-impl lazy", "mmap"),
    "file as folder": ("--trainpref train --destdir file", "cannot write into file: it is no folder"),
    "folder below a file": ("--trainpref train --destdir file/data", "cannot write into file/data: file: "),
    "other dictionary": ("--trainpref valid --destdir old", "old/test.de-en.de.bin needs the dict.de.txt beside it"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(text, capsys, case):
    flags, complaint = CASES[case]
    call("--trainpref train --testpref test --destdir old")
    shutil.copytree("old", "more")
    for path in Path("more").glob("train.*"):
        path.rename(path.with_name(path.name.replace("train", "train1")))
    before = snapshot(text)
    assert complaint in one_line(lambda: call(flags), PROGRAM, capsys, printed=True)
    assert snapshot(text) == before


def test_as_a_program(text):
    program = [sys.executable, preprocess.__file__]
    done = subprocess.run([*program, *"-s de -t en --trainpref train".split()], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar where there is no terminal
    failed = subprocess.run([*program, *"-s de -t en --trainpref latin".split()], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "Traceback" not in failed.stderr
