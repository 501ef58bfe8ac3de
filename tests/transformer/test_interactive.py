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
    """Call interactive.py with these lines on standard input; return the lines of its answer, divided at tabs."""

    def ask(text: str, *flags: str) -> list[list[str]]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        interactive.main([*arguments, *flags])
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

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
    for line in ("eins zwei", "", "drei"):
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"O\t{line}\n"
        assert process.stdout.readline().startswith("H\t")
        assert process.stdout.readline().startswith("A\t")
    rest, errors = process.communicate()
    assert (rest, errors, process.returncode) == ("", "", 0)
