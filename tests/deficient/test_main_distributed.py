"""Two processes train a teacher and its student as one run: one set of files and lines, evaluated together."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from deficient import data, settings
from deficient.networks import Config, build

from lab import devices
from tests.harness import events, torchrun

RUN = {"args.json", "best.t7", "checkpoint.t7", "results.json"}


@torch.no_grad()
def alone(study, folder: Path) -> tuple[float, float]:
    """Return the loss and error of a run's last network on all test images, found by one process in one batch."""
    state = torch.load(folder / "checkpoint.t7", weights_only=True)
    model = build(Config.from_dict(state["config"])).eval()
    model.load_state_dict(state["state_dict"])
    args = settings.build_parser().parse_args(study.command("teacher", "--conv", "Sep", "--batch_size", 100))
    ((images, labels),) = data.load(args, devices.start(args))[2].epoch(0)
    logits = model(images)
    return F.cross_entropy(logits, labels).item(), 100 * (logits.argmax(1) != labels).float().mean().item()


@pytest.fixture(scope="module")
def teacher(study) -> Path:
    """Return the folder of a teacher that two processes have trained."""
    return train(study, "teacher", "--conv", "TensorTrain_0.5", "--spectral", "--wd2fd", "-t", study.folder / "teacher")


def train(study, mode: str, *flags: object) -> Path:
    """Train in two processes, in batches of 12 and a last one of 6; the folder comes last among the flags."""
    command = study.command(mode, "--batch_size", 12, *flags)
    ran = torchrun("deficient-efficient", "deficient-efficient/main.py", *command)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    start = ["data:", "network:", "weights:", "layers:", "decay:", "run:", *["teacher:"] * (mode == "student")]
    assert [line.split()[0] for line in lines] == [*start, "epoch", "epoch", "best", "in", "a"]
    return Path(flags[-1])


@pytest.mark.parametrize("mode", ["teacher", "student"])
def test_one_run(study, teacher, mode):
    folder = teacher
    if mode == "student":
        flags = ["--conv", "Tucker_0.5", "--alpha", 0.5, "--wd2fd", "-t", teacher, "-s", study.folder / "student"]
        folder = train(study, "student", *flags)
    assert {path.name for path in folder.iterdir() if not path.name.startswith("events.")} == RUN
    assert len(list(folder.glob("events.*"))) == 1
    assert events(folder)["train_frob_penalty"][0] == [0, 1]
    history = torch.load(folder / "checkpoint.t7", weights_only=True)["history"]
    loss, error = alone(study, folder)
    assert history["val_losses"][-1] == pytest.approx(loss, rel=1e-4)
    assert history["val_errors"][-1] == pytest.approx(error, abs=1e-4)
    assert json.loads((folder / "results.json").read_text())["final validation error"] == history["val_errors"][-1]
