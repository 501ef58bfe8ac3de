"""The trainer's commands in README.md run as they stand, for one epoch on tiny images."""

import re
import shlex
from pathlib import Path

import pytest
import trainer

from lab import images
from tests.resnet import tiny

PROGRAM = "python trainer.py "


def commands() -> list[str]:
    """Return the commands of the shell blocks that enter the trainer's folder, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (tiny.REPOSITORY / "README.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split(" # ")[0].removeprefix(PROGRAM) for line in lines if line.startswith(PROGRAM)]


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


@pytest.mark.parametrize("flag", ["--rank-scale", "--target-ratio", "--wd2fd", "--resume", "--holdout", "--seed"])
def test_flags_in_the_text_exist(flag):
    assert flag in (tiny.REPOSITORY / "README.md").read_text()
    assert flag in trainer.build_parser().format_help()
