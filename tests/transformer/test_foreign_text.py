"""Command lines of fairseq's programs for text: what works as it stands, and what is explained."""

import generate
import interactive
import preprocess
import pytest
import score
from fairseq import foreign_text

from tests.harness import one_line
from tests.transformer.translation import TEST, make_checkpoint, make_data, write_text

PROGRAMS = {
    "preprocess.py": (preprocess, foreign_text.PREPROCESS, ["-s", "de", "-t", "en"]),
    "generate.py": (generate, foreign_text.GENERATE, ["data", "--path", "model"]),
    "interactive.py": (interactive, foreign_text.INTERACTIVE, ["data", "--path", "model"]),
    "score.py": (score, foreign_text.SCORE, ["-r", "text"]),
}


def parse(name: str, *flags: str):
    program, _, needed = PROGRAMS[name]
    return program.build_parser().parse_args([*needed, *flags])


def entries(kind: str) -> list[tuple]:
    """Return (program, flag, what a table has for it) of a kind of flags."""
    found = []
    for name, (_, tables, _) in PROGRAMS.items():
        for table in tables:
            flags = getattr(table, kind)
            found += [(name, flag, flags[flag] if isinstance(flags, dict) else None) for flag in flags]
    return found


def test_what_changes_nothing_is_accepted_and_hidden():
    for name in PROGRAMS:
        flags = [part for program, flag, _ in entries("values") if program == name for part in (flag, "8")]
        flags += [flag for program, flag, _ in entries("switches") if program == name]
        assert parse(name, *flags) == parse(name)
        text = PROGRAMS[name][0].build_parser().format_help()
        assert not any(f" {flag} " in text for flag in flags if flag.startswith("--"))


@pytest.mark.parametrize(("name", "flag", "entry"), entries("certain"))
def test_values_that_change_nothing_are_accepted(name, flag, entry, capsys):
    values, hint = entry
    for value in values:
        assert parse(name, flag, *[value] * bool(value)) == parse(name)
    assert f"{flag} 77 is a flag of fairseq: {hint}" in one_line(lambda: parse(name, flag, "77"), name, capsys)


@pytest.mark.parametrize(("name", "flag", "hint"), entries("hints"))
def test_what_there_is_not_is_explained(name, flag, hint, capsys):
    for values in ((), ("8",), ("8", "9")):
        error = one_line(lambda values=values: parse(name, flag, *values), name, capsys)
        assert f"{flag} is a flag of fairseq: {hint}" in error


def test_commands_of_fairseq(tmp_path, capsys):
    """As its documentation has them, from text to a score."""
    data, text = make_data(tmp_path), str(write_text(tmp_path / "text", "test", TEST))
    path, folder = str(make_checkpoint(tmp_path / "model.pt", data)), str(tmp_path / "data")
    given = f"--srcdict {data}/dict.de.txt --tgtdict {data}/dict.en.txt"
    preprocess.main(
        f"--source-lang de --target-lang en --testpref {text} --destdir {folder} {given} --workers 20 "
        "--dataset-impl mmap --tokenizer space --task translation --padding-factor 1 --fp16".split()
    )
    capsys.readouterr()
    generate.main(
        f"{folder} --path {path} --batch-size 128 --beam 5 --remove-bpe --gen-subset test --nbest 1 --lenpen 0.6 "
        "--max-len-b 6 --sacrebleu --scoring sacrebleu --num-workers 2 --task translation --print-alignment "
        "--skip-invalid-size-inputs-valid-test --tokenizer moses --cpu --model-overrides {} -s de -t en".split()
    )
    assert "sacreBLEU = " in capsys.readouterr().out
    interactive.main(
        f"{folder} --path {path} --beam 5 --source-lang de --target-lang en --input {text}.de --buffer-size 1024 "
        "--batch-size 32 --max-len-b 6 --tokenizer space --remove-bpe subword_nmt --cpu --num-workers 1".split()
    )
    assert capsys.readouterr().out.count("H-") == len(TEST["de"])


def test_half_precision(tmp_path, capsys):
    data = make_data(tmp_path)
    path = make_checkpoint(tmp_path / "model.pt", data)
    with pytest.warns(UserWarning, match="--fp16 needs a GPU: running with --amp bf16"):
        generate.main([str(data), "--path", str(path), "--max-len-b", "3", "--fp16", "--cpu", "--quiet"])


def test_every_program_has_a_flag_once():
    flags = [(name, flag) for kind in ("values", "switches", "certain", "hints") for name, flag, _ in entries(kind)]
    assert len(flags) == len(set(flags)) > 200
