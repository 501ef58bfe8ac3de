"""interactive.py: an answer to every line, at once, the same as generate.py's."""

import io
import re
import subprocess
import sys
from pathlib import Path

import generate
import interactive
import pytest
import torch
from subword_nmt.learn_bpe import learn_bpe

from tests.transformer.translation import TEST, make_checkpoint, make_data

PROGRAM = Path(interactive.__file__)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("interactive")
    data = make_data(folder)
    path = make_checkpoint(folder / "model.pt", data)
    return [str(data), "--path", str(path), "--max-len-b", "6", "--device", "cpu"]


@pytest.fixture
def ask(arguments, monkeypatch, capsys):
    """Call interactive.py with this text on standard input; return the lines of its answer, divided at tabs.

    The number of the line, which all begin with, is checked and left out.
    """

    def ask(text: str | bytes, *flags: str) -> list[list[str]]:
        content = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        interactive.main([*arguments, *flags])
        number, answers = -1, []
        for line in capsys.readouterr().out.splitlines():
            kind, *fields = line.split("\t")
            number += kind.startswith("O")
            assert re.fullmatch(rf"[OHA]-{number}", kind)
            answers.append([kind[0], *fields])
        return answers

    return ask


def test_answers_are_those_of_generate(ask, arguments, capsys):
    generate.main([*arguments, "--nbest", "2", "--remove-bpe"])
    expected = [
        (int(match[2]), match[1], *match[3].split("\t"))
        for match in map(re.compile(r"([HA])-(\d+)\t(.*)").fullmatch, capsys.readouterr().out.splitlines())
        if match
    ]
    answers = ask("".join(f"{line}\r\n" for line in TEST["de"]), "--nbest", "2", "--remove-bpe")
    assert [line[1] for line in answers if line[0] == "O"] == TEST["de"]
    number, found = -1, []
    for kind, *fields in answers:
        number += kind == "O"
        found += [(number, kind, *fields)] * (kind != "O")
    expected.sort(key=lambda line: line[0])
    assert len(found) == 4 * len(TEST["de"])
    for ours, theirs in zip(found, expected, strict=True):
        if ours[1] == "H":
            assert float(ours[2]) == pytest.approx(float(theirs[2]), abs=2e-4)
            ours, theirs = (*ours[:2], ours[3]), (*theirs[:2], theirs[3])
        assert ours == theirs


@pytest.mark.parametrize("flags", [["--buffer-size", "100"], ["--buffer-size", "3", "--batch-size", "2"]])
def test_buffers_and_files_give_the_same_answers(ask, tmp_path, flags):
    text = "".join(f"{line}\n" for line in [*TEST["de"][:3], "", "zwei " * 38, *TEST["de"][3:]])
    one_by_one = ask(text, "--nbest", "2")
    (tmp_path / "text").write_text(text, encoding="utf-8")
    for content, more in ((text, []), ("", ["--input", str(tmp_path / "text")])):
        buffered = ask(content, "--nbest", "2", *flags, *more)
        for ours, theirs in zip(buffered, one_by_one, strict=True):
            if ours[0] == "H":
                assert float(ours.pop(1)) == pytest.approx(float(theirs[1]), abs=2e-4)
                theirs = [theirs[0], theirs[2]]
            assert ours == theirs


def test_batches_hold_what_was_asked_for(ask, monkeypatch):
    sizes = []
    translate = interactive.Translator.translate

    def counted(self, batch):
        sizes.append(len(batch))
        return translate(self, batch)

    monkeypatch.setattr(interactive.Translator, "translate", counted)
    for flags, expected in (
        ([], [1] * 7),
        (["--buffer-size", "5"], [5, 2]),
        (["--batch-size", "3"], [3, 3, 1]),
        (["--batch-size", "2", "--buffer-size", "7"], [2, 2, 2, 1]),
        (["--buffer-size", "7", "--max-tokens", "12"], [4, 2, 1]),
    ):
        sizes.clear()
        ask("\n".join(TEST["de"]), *flags)
        assert sizes == expected


def test_lines_that_are_not_utf8_are_passed_over(arguments, monkeypatch, capsys):
    content = b"\xef\xbb\xbfeins\n\xff\xfe\nzw\xf6lf\nzwei\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    interactive.main(arguments)
    output = capsys.readouterr()
    lines = [line.split("\t") for line in output.out.splitlines()]
    assert [line[0] for line in lines] == [f"{kind}-{number}" for number in range(4) for kind in "OHA"]
    assert lines[0][1] == "eins" and lines[3:9] == [
        [f"{kind}-{number}", *rest] for number in (1, 2) for kind, *rest in (["O", ""], ["H", "0.0000", ""], ["A", ""])
    ]
    assert lines[10][2] != ""
    warnings = output.err.splitlines()
    assert [line.split(":")[2] for line in warnings] == [" standard input, line 2", " standard input, line 3"]
    assert all(line.endswith("not UTF-8; convert the file to UTF-8; it is not translated") for line in warnings)


def test_lines_without_words_and_with_too_many(ask, capsys):
    answers = ask("\n   \n" + "zwei " * 38 + "\nzwei", "--max-source-positions", "30")
    assert [line[0] for line in answers] == ["O", "H", "A"] * 4
    assert answers[1:3] == answers[4:6] == answers[7:9] == [["H", "0.0000", ""], ["A", ""]]
    assert answers[10][2] != ""
    assert ask("") == []


def test_a_line_that_is_too_long_gives_a_warning(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"zwei " * 38)))
    interactive.main(arguments)
    assert capsys.readouterr().err == (
        "interactive.py: warning: 38 words in a line are too many, the most is 37; it is not translated\n"
    )


def test_text_is_made_like_the_training_data(ask, tmp_path):
    codes = tmp_path / "codes"
    with codes.open("w") as file:
        learn_bpe(["sieben sieben siech zehn eben"] * 3, file, 20)
    plain = ask("eins , sie@@ ben", "--remove-bpe")
    assert ask("eins , sieben", "--remove-bpe", "--bpe-codes", str(codes))[1:] != plain[1:]  # merged to a whole word
    codes.write_text("#version: 0.2\ns i\nsi e\nb e\nbe n</w>\ne i\nei n\nein s</w>\n")
    assert ask("eins , sieben", "--remove-bpe", "--bpe-codes", str(codes))[1:] == plain[1:]
    raw = ask("Eins, Sieben", "--remove-bpe", "--bpe-codes", str(codes), "--tokenizer", "moses")
    assert raw[0] == ["O", "Eins, Sieben"]
    assert raw[2] == plain[2]
    assert raw[1][2] == plain[1][2].replace(" &apos;s", "'s")


def test_marks_of_files_are_no_part_of_them(ask, tmp_path):
    codes, lexicon, text = tmp_path / "codes", tmp_path / "lexicon", tmp_path / "text"
    codes.write_text("#version: 0.2\ns i\nsi e\nb e\nbe n</w>\ne i\nei n\nein s</w>\n")
    lexicon.write_text("acht eight\n")
    text.write_text("acht eins\n")
    flags = f"--unkpen -9 --remove-bpe --bpe-codes {codes} --replace-unk {lexicon} --input {text}".split()
    plain = ask("", *flags)
    for path in (codes, lexicon, text):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ask("", *flags) == plain


def test_unknown_words_are_replaced(ask):
    _, plain, alignment = ask("acht neun", "--unkpen", "-9")
    _, replaced, _ = ask("acht neun", "--unkpen", "-9", "--replace-unk")
    aligned = [{"0": "acht", "1": "neun"}.get(position) for position in alignment[1].split()]
    assert "<unk>" in plain[2]
    assert replaced[2].split() == [word or old for word, old in zip(aligned, plain[2].split())]


def test_a_pipe_gets_its_answer_before_the_next_line(arguments):
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROGRAM.parent, text=True,
    )  # fmt: skip
    for number, line in enumerate(("eins zwei", "", "drei")):
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"O-{number}\t{line}\n"
        assert process.stdout.readline().startswith(f"H-{number}\t")
        assert process.stdout.readline().startswith(f"A-{number}\t")
    rest, errors = process.communicate()
    assert (rest, errors, process.returncode) == ("", "", 0)
