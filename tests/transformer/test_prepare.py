"""Preparing IWSLT'14 and Multi30k from small stand-ins, and downloads from folders that stand in for the web."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from fairseq.corpus import load_dictionaries, load_split
from fairseq.preparation import tokens
from fairseq.preparation.corpora import CORPORA, segments, talks
from fairseq.subwords import join_subwords

from tests.harness import load_program, one_line, snapshot

prepare = load_program("Transformer-PyTorch/data/prepare.py")

NUMBERS = ["eins one", "zwei two", "drei three", "vier four", "fünf five", "sechs six", "sieben seven"]
TESTS = ["TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"]


def pair(number: int) -> tuple[str, str]:
    """Return the sentence pair of this number: 5 words each, which tell the number in base 7."""
    digits = [number // 49 % 7, number // 7 % 7, number % 7]
    german, english = zip(*(NUMBERS[digit].split() for digit in digits))
    return f"Hier ist {' '.join(german)}", f"Here is {' '.join(english)}"


@pytest.fixture(scope="module")
def iwslt() -> dict[str, str]:
    """The files of the archive: 50 good pairs with some between that are dropped, and two sentences in each test."""
    files = {}
    for side, language in enumerate(("de", "en")):
        lines = ["<url>http://x</url>", "<keywords>talks</keywords>", "<talkid>1</talkid>"]
        lines += [f"<title>{pair(0)[side]}</title>", f"<description>{pair(1)[side]}</description>"]
        lines += [f" {pair(number)[side]} " for number in range(2, 30)]
        lines += [("kurz", "this is much longer")[side], ("", "empty")[side], ("lang " * 176, "long " * 176)[side]]
        lines += [pair(number)[side] for number in range(30, 50)]
        files[f"train.tags.de-en.{language}"] = "".join(f"{line}\n" for line in lines)
        for number, test in enumerate(TESTS):
            lines = ["<doc>", f'<seg id="1"> {pair(100 + number)[side]} </seg>']
            lines += [f'<seg id="2">It’s <b>\u2028{number}</seg>', "</doc>"]
            files[f"IWSLT14.{test}.de-en.{language}.xml"] = "".join(f"{line}\n" for line in lines)
    return files


def write_archive(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"de-en/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))


@pytest.fixture
def multi30k(tmp_path) -> Path:
    """A folder with the files of Multi30k, some packed, with few pairs."""
    folder = tmp_path / "multi30k"
    folder.mkdir()
    for split, count in {"train": 60, "valid": 5, "test_2016_flickr": 4, "test_2017_flickr": 3}.items():
        for side, language in enumerate(("de", "en")):
            text = "".join(f"{pair(number)[side]}.\n" for number in range(count)).encode()
            if split == "train":
                (folder / f"{split}.{language}").write_bytes(text)
            else:
                (folder / f"{split}.{language}.gz").write_bytes(gzip.compress(text))
    return folder


def call(*flags: object) -> None:
    prepare.main([str(flag) for flag in flags])


def read(folder: Path, split: str) -> list[tuple[str, str]]:
    german, english = ((folder / f"{split}.{language}").read_text().splitlines() for language in ("de", "en"))
    return list(zip(german, english))


@pytest.mark.parametrize("form", ["archive", "folder", "folder de-en"])
def test_iwslt14(tmp_path, iwslt, form):
    source = tmp_path / "source"
    folder = source / "de-en" if form == "folder de-en" else source
    folder.mkdir(parents=True)
    if form == "archive":
        write_archive(folder / "de-en.tgz", iwslt)
    else:
        for name, text in iwslt.items():
            (folder / name).write_text(text)
    call("iwslt14", "--from", source, "--destdir", tmp_path / "out", "--words", 1, "--any-size")
    text = tmp_path / "out" / "data" / "iwslt14.words.de-en"
    pairs = [tuple(side.lower() for side in pair(number)) for number in range(50)]
    assert read(text, "valid") == [pairs[22], pairs[45]]
    assert read(text, "train") == [pair for number, pair in enumerate(pairs, 1) if number not in (23, 46)]
    tests = []
    for number in range(5):
        quote = f"it &apos;s &lt; b &gt; {number}"
        tests += [tuple(side.lower() for side in pair(100 + number)), (quote, quote)]
    assert [pair[1] for pair in read(text, "test")] == [pair[1] for pair in tests]
    assert read(text, "test")[::2] == tests[::2]


def test_text_of_the_talks():
    assert talks(["<url>x</url>", "a <talkid>", "<title>A b</title>", " c <i>d</i>"]) == ["A b", " c <i>d</i>"]
    lines = ["<seg>", '<seg id="1">  A’b  </seg>  ', ' <seg id="27">c</seg>d', "<doc>"]
    assert segments(lines) == ["A'b", " cd"]


def test_tokens_of_the_moses_scripts():
    """Known outputs of the tokenizer: no split in numbers and abbreviations, escaped quotes and brackets."""
    assert tokens.tokenize(['Mr. Smith\'s  [1,000.5] co-op; "No!"'], "en", "") == [
        "mr. smith &apos;s &#91; 1,000.5 &#93; co-op ; &quot; no ! &quot;"
    ]
    assert tokens.tokenize(["Am 3. Mai ging's z.B. los. "], "de", "") == ["am 3. mai ging &apos; s z.b. los ."]


def test_cleaning():
    pairs = [("a", "b"), ("", "b"), ("a b c", "d e"), ("a b c d", "e f"), ("a", "b c"), ("a " * 9, "b " * 10)]
    assert tokens.clean(pairs, least=1, most=9, ratio=1.5) == [("a", "b"), ("a b c", "d e")]
    assert tokens.clean(pairs, least=2, most=10, ratio=float("inf")) == [pairs[2], pairs[3], pairs[5]]


def test_subwords_of_a_known_text():
    """The first merges of the usual example, worked out by hand; of equals, the later in the alphabet."""
    lines = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    code = tokens.learn(lines, 3)
    assert code[0].startswith("#version") and code[1:] == ["s t</w>", "e st</w>", "l o"]
    assert tokens.Segmenter(code)(["lowest low news"], "") == ["lo@@ w@@ est lo@@ w n@@ e@@ w@@ s"]


def test_subwords_join_again():
    lines = [line for number in range(60) for line in pair(number)]
    code = tokens.learn(lines, 20)
    assert code == tokens.learn(iter(lines), 20) and len(code) == 21
    cut = tokens.Segmenter(code)([*lines, "unseen wörds"], "")
    assert cut != [*lines, "unseen wörds"]
    assert [join_subwords(line, "@@ ") for line in cut] == [*lines, "unseen wörds"]


def test_multi30k(tmp_path, multi30k):
    out = tmp_path / "out"
    call("multi30k", "--from", multi30k, "--destdir", out, "--merges", 12, "--any-size")
    text, data = out / "data" / "multi30k.tokenized.de-en", out / "data-bin" / "multi30k.tokenized.de-en"
    dictionaries = load_dictionaries(data, "de", "en")
    for split, count in {"train": 60, "valid": 5, "test": 4, "test1": 3}.items():
        corpus = load_split(data, split, "de", "en", dictionaries)
        assert len(corpus) == count
        for number in range(count):
            german, english = (f"{side.lower()} ." for side in pair(number))
            assert dictionaries[0].string(corpus.source[number], "@@ ") == german
            assert dictionaries[1].string(corpus.target[number], "@@ ") == english
    assert "@@" in (text / "train.de").read_text() and len((text / "code").read_text().splitlines()) == 13
    before = snapshot(out)
    call("multi30k", "--from", multi30k, "--destdir", out, "--merges", 12, "--any-size")
    assert snapshot(out) == before


def test_whole_words(tmp_path, multi30k):
    """eins is the first digit of 49 sentences, the second of 14 and the third of 9; other numbers are rarer than 50."""
    call("multi30k", "--from", multi30k, "--destdir", tmp_path, "--words", 50, "--any-size")
    data = tmp_path / "data-bin" / "multi30k.words.de-en"
    assert (data / "dict.de.txt").read_text() == "eins 72\nhier 60\nist 60\n. 60\n"


def test_downloads(tmp_path, multi30k, capsys):
    """The first mirror is no address, the second has nothing, the third all."""
    web = tmp_path / "web"
    web.mkdir()
    for split, name in {"train": "train", "valid": "val", "test_2016_flickr": None, "test_2017_flickr": None}.items():
        for language in ("de", "en"):
            path = multi30k / f"{split}.{language}"
            text = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
            (web / f"{name or split}.{language}.gz").write_bytes(gzip.compress(text, mtime=0))
    digest = hashlib.sha256((web / "val.de.gz").read_bytes()).hexdigest()
    flags = ["multi30k", "--merges", 12, "--any-size", "--destdir", tmp_path / "out"]
    flags += ["--sha256", f"val.de.gz={digest.upper()}", "--url", "nonsense", "--url", (tmp_path / "no").as_uri()]
    call(*flags, "--url", web.as_uri())
    assert f"{web.as_uri()}/val.de.gz: SHA-256 {digest}" in capsys.readouterr().out
    call("multi30k", "--merges", 12, "--any-size", "--destdir", tmp_path / "other", "--from", multi30k)
    text = Path("data") / "multi30k.tokenized.de-en"
    assert [*snapshot(tmp_path / "out" / text).values()] == [*snapshot(tmp_path / "other" / text).values()]
    call(*flags)  # from the files that were kept: no mirror has any


def test_downloads_that_fail(tmp_path, capsys):
    flags = ["iwslt14", "--url", (tmp_path / "no").as_uri(), "--url", (tmp_path / "nor").as_uri()]
    error = one_line(lambda: call(*flags, "--destdir", tmp_path / "out"), "prepare", capsys, status=1)
    assert "/no/de-en.tgz" in error and "/nor/de-en.tgz" in error and "--url" in error and "--from" in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_cut_download_is_no_file(tmp_path, monkeypatch, capsys):
    class Answer(io.BytesIO):
        headers = {"Content-Length": "1000"}

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer(b"short"))
    main = lambda: call("iwslt14", "--url", "http://x", "--destdir", tmp_path)  # noqa: E731
    assert "ended after 5 of 1000 bytes" in one_line(main, "prepare", capsys, status=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def damage(folder: Path, case: str) -> None:
    """Change the files of Multi30k into those of `case`."""
    packed, plain = folder / "valid.de.gz", folder / "train.de"
    if case == "cut":
        packed.write_bytes(packed.read_bytes()[:-10])
    elif case == "unpacked":
        packed.write_bytes(gzip.decompress(packed.read_bytes()))
    elif case == "missing":
        packed.unlink()
    elif case == "shorter":
        plain.write_text("Hier\n")
    elif case == "empty":
        plain.write_text("")
        (folder / "train.en").write_text("")
    elif case == "latin":
        plain.write_bytes("Hier\nBär\n".encode("latin-1"))
    elif case == "letters":
        for language in ("de", "en"):
            (folder / f"train.{language}").write_text("a b c\n")


CASES = {
    "no such folder": ("", "--from nowhere", "--from nowhere: no such folder"),
    "cut": ("cut", "", "valid.de.gz cannot be read, or is damaged"),
    "unpacked": ("unpacked", "", "valid.de.gz cannot be read, or is damaged"),
    "missing": ("missing", "", "has none of valid.de, valid.de.gz, val.de, val.de.gz"),
    "shorter": (
        "shorter",
        "",
        "train must have as many lines in one language as in the other, not {'de': 1, 'en': 60}",
    ),
    "empty": ("empty", "", "train must have as many lines"),
    "latin": ("latin", "", "train.de, line 2: not UTF-8"),
    "letters": ("letters", "", "no words of two letters"),
    "other sizes": ("", "--small", "'test': 4, 'test1': 3} pairs, not {'train': 29000"),
    "checksum": ("", f"--sha256 train.de={'0' * 64}", "train.de has the SHA-256"),
    "short checksum": ("", "--sha256 train.de=123", "64 hexadecimal digits, not train.de=123"),
    "no merges": ("", "--merges 0", "--merges: must be an integer at least 1"),
    "merges and words": ("", "--merges 5 --words 5", "not allowed with argument"),
    "unknown corpus": ("", "wmt14", "wmt14"),
    "made otherwise": ("", "--merges 6", "was made with {'corpus': 'multi30k', 'merges': 5"),
    "file as folder": ("", "--destdir multi30k/train.de", "multi30k/train.de"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(tmp_path, multi30k, monkeypatch, capsys, case):
    damaged, flags, complaint = CASES[case]
    monkeypatch.chdir(tmp_path)
    call("multi30k", "--from", multi30k, "--any-size", "--merges", 5, "--destdir", "out")
    damage(multi30k, damaged)
    before = snapshot(tmp_path)
    words = ["--from", "multi30k", "--destdir", "out", *flags.split()]
    words = words if "--merges" in words or "--words" in words else [*words, "--merges", "5"]
    words = [word for word in words if word != "--small"] if "--small" in words else [*words, "--any-size"]
    words = words if "wmt14" in words else ["multi30k", *words]
    assert complaint in one_line(lambda: call(*words), "prepare", capsys)
    assert snapshot(tmp_path) == before


def test_damaged_archive(tmp_path, iwslt, capsys):
    archive = tmp_path / "de-en.tgz"
    main = lambda: call("iwslt14", "--from", tmp_path, "--destdir", tmp_path / "out")  # noqa: E731
    write_archive(archive, {name: text for name, text in iwslt.items() if "tst2011" not in name})
    assert "de-en.tgz has no de-en/IWSLT14.TED.tst2011.de-en.de.xml" in one_line(main, "prepare", capsys)
    write_archive(archive, iwslt)
    assert "not {'train': 160239, 'valid': 7283, 'test': 6750}" in one_line(main, "prepare", capsys)
    archive.write_bytes(archive.read_bytes()[:300])
    assert "de-en.tgz cannot be read, or is damaged" in one_line(main, "prepare", capsys)


@pytest.mark.parametrize("corpus", CORPORA)
def test_as_a_program(tmp_path, corpus):
    script = Path(prepare.__file__).with_name(f"prepare-{corpus}.sh")
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHON": sys.executable}, "capture_output": True, "text": True}
    done = subprocess.run(["sh", script, "--from", "nowhere"], **options)
    assert (done.returncode, done.stderr) == (2, "prepare: error: --from nowhere: no such folder\n")
