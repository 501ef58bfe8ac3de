"""Commands in README.md run as they stand, but for a moment and on tiny data."""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import generate
import interactive
import main_pretrain
import main_prune
import pytest
import torch
import train
import trainer
from deficient import settings

import factorized
from lab.data import images
from tests.harness import REPOSITORY, load_program
from tests.resnet import tiny
from tests.transformer import tiny as tiny_translation

PROGRAM = "python trainer.py "
SMALL = "--hidden-size 16 --filter-size 32 --num-layers 1 --num-heads 2 --max-update 3 --device cpu"
TRANSLATION = {  # by the program: what runs, and with which flags besides those in the text
    "train.py": (train, SMALL),
    "generate.py": (generate, "--max-len-b 5 --device cpu"),
    "interactive.py": (interactive, "--max-len-b 5 --device cpu"),
    "data/make-numbers.py": (
        load_program("Transformer-PyTorch/data/make-numbers.py"),
        "--train 50 --valid 5 --test 5 --destdir .",
    ),
}


def lines() -> list[str]:
    """Return the lines of the shell blocks, in order, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    return [line.split(" # ")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands() -> list[str]:
    """Return the commands of the trainer of classifiers, in order."""
    return [line.removeprefix(PROGRAM) for line in lines() if line.startswith(PROGRAM)]


def test_the_python_runs_block_after_block(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text, names = (REPOSITORY / "README.md").read_text(), {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(block, names)
    assert "layers are dense" in capsys.readouterr().out
    assert not factorized.factorized_modules(names["plain"])
    names["image"].normal_()
    torch.testing.assert_close(names["program"].module()(names["image"]), names["small"].eval()(names["image"]))


def test_the_commands_run_one_after_another(tmp_path, monkeypatch):
    """In one folder and in this order: a later command may use what an earlier one has written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(images.LOADERS, "digits", tiny.digits)
    found = commands()
    assert len(found) >= 3
    for command in found:
        argv = shlex.split(command)
        args = trainer.build_parser().parse_args(argv)
        folder = Path(args.save_dir)
        assert not (folder / "results.json").exists(), f"two commands write to {folder}"
        trainer.main([*argv, "--data", "digits", "--epochs", "1", "--device", "cpu"])
        assert (folder / "results.json").exists()


@pytest.mark.parametrize("program", ["main_pretrain.py", "main_prune.py", "main.py"])
def test_the_commands_are_accepted_by_their_first_names(program):
    programs = {"main_pretrain.py": main_pretrain, "main_prune.py": main_prune, "main.py": settings}
    parser = programs[program].build_parser()
    found = [line.removeprefix(f"python {program} ") for line in lines() if line.startswith(f"python {program} ")]
    assert len(found) >= 2
    for command in found:
        parser.parse_args(shlex.split(command))
        flags = [word for word in shlex.split(command) if word.startswith("--")]
        assert not set(flags) - set(parser._option_string_actions), command


@pytest.mark.parametrize("flag", ["--rank-scale", "--target-ratio", "--wd2fd", "--resume", "--holdout", "--seed"])
def test_flags_in_the_text_exist(flag):
    assert flag in (REPOSITORY / "README.md").read_text()
    assert flag in trainer.build_parser().format_help()


def test_the_translation_commands_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    every, used = lines(), []
    for line in every[every.index("cd Transformer-PyTorch") :]:
        if line.startswith("sh data/prepare-iwslt14.sh"):
            assert (REPOSITORY / "Transformer-PyTorch" / line.split()[1]).is_file()
            (tmp_path / "tiny").mkdir()
            shutil.move(tiny_translation.make_data(tmp_path / "tiny"), "data-bin/iwslt14.tokenized.de-en")
        match = re.fullmatch(r"(?:echo (.*) \| )?python (\S+\.py)(.*)", line)
        if match and match[2] in TRANSLATION:
            program, flags = TRANSLATION[match[2]]
            if match[1]:
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{match[1]}\n".encode())))
            capsys.readouterr()
            program.main(shlex.split(f"{match[3]} {flags}"))
            used.append((match[2], capsys.readouterr().out))
    assert [name for name, _ in used] == [
        "data/make-numbers.py", "train.py", "generate.py", "interactive.py", "train.py", "generate.py"
    ]  # fmt: skip
    assert re.match(r"O-0\tzweiundvierzig\nH-0\t-?\d", used[3][1])
    assert Path("results/translation/bleu.log").read_text() in used[5][1]
    assert "Generate test with beam=5: BLEU4 = " in used[5][1]
