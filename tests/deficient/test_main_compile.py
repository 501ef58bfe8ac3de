"""A compiled run of a teacher or a student is near the plain one, and so is one in mixed precision."""

import functools
from pathlib import Path

import pytest
import torch

from tests.harness import events

# At width 1, as oneDNN crashes in the backward pass of a strided 1 x 1 convolution of four channels in channels-last
# order, which is also the order that a compiled network uses.
SHARED = ("--wrn_width", 1, "--lr", 0.01, "--wd2fd")
TEACHER = (*SHARED, "--conv", "TensorTrain_0.5", "--spectral")
STUDENT = (*SHARED, "--conv", "Tucker_0.5", "--alpha", 0.5)


@pytest.fixture(scope="module")
def plain(study) -> dict[str, Path]:
    """Return the folders of a teacher and of its student, both trained without further ado."""
    folders = {mode: study.folder / mode for mode in ("teacher", "student")}
    study.run("teacher", *TEACHER, "-t", folders["teacher"])
    study.run("student", *STUDENT, "-t", folders["teacher"], "-s", folders["student"])
    return folders


def check_near(study, plain, mode: str, folder: Path, tolerance: float, *flags: str) -> None:
    """Train again with more flags, and compare losses and penalties with the plain run."""
    own = (*TEACHER, "-t", folder) if mode == "teacher" else (*STUDENT, "-t", plain["teacher"], "-s", folder)
    study.run(mode, *own, *flags)
    for tag in ("train_loss", "val_loss", "train_frob_penalty"):
        assert events(folder)[tag][1] == pytest.approx(events(plain[mode])[tag][1], rel=tolerance), tag
    weights = torch.load(folder / "checkpoint.t7", weights_only=True)["state_dict"]
    assert not any("_orig_mod" in name for name in weights)
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights.values())


@pytest.mark.parametrize("mode", ["teacher", "student"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled(study, plain, tmp_path, monkeypatch, mode, backend):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.compiler.reset()
    check_near(study, plain, mode, tmp_path / "run", 1e-3, "--compile")


@pytest.mark.parametrize("mode", ["teacher", "student"])
def test_mixed_precision(study, plain, tmp_path, mode):
    check_near(study, plain, mode, tmp_path / "run", 0.05, "--amp", "bf16")
