"""Runs of `main.py`: a teacher, its students, what they leave on disk, and runs that are continued."""

import json
import math
import shutil
from pathlib import Path

import main as trainer
import pytest
import torch
from deficient import settings
from deficient.networks import Config

from lab.cli import UserError
from lab.loop import Classifier
from lab.settings import plain
from tests.harness import HEAD, events, snapshot

RUN = {"args.json", "best.t7", "checkpoint.t7", "results.json"}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("events.")}


def read(folder: Path, name: str = "results.json") -> dict:
    return json.loads((folder / name).read_text())


def load(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.t7", weights_only=True)


def tags(folder: Path) -> dict[str, int]:
    return {tag: len(steps) for tag, (steps, _) in events(folder).items()}


@pytest.fixture(scope="module")
def teacher(study) -> Path:
    """Return the folder of a trained teacher."""
    folder = study.folder / "teacher"
    study.run("teacher", "--conv", "TensorTrain_0.5", "-t", folder, "--spectral", "--wd2fd")
    return folder


def test_teacher_leaves_a_run(teacher):
    assert files(teacher) == RUN
    results = read(teacher)
    config = Config("WideResNet", tuple("abcde"), "TensorTrain_0.5", depth=10, width=0.25)
    assert tuple(results)[: len(HEAD)] == HEAD
    assert (results["metric"], results["best"]) == ("validation error (%)", results["best validation error"])
    assert results["method"] == "structured, spectral start, Frobenius decay"
    assert results["compressed parameter count"] == trainer.networks.count(config)
    assert results["original parameter count"] == trainer.networks.count(trainer.networks.reference(config))
    ratio = results["compressed parameter count"] / results["original parameter count"]
    assert results["compression ratio"] == pytest.approx(ratio)
    assert 0 <= results["best validation error"] <= results["final validation error"] <= 100
    arguments = read(teacher, "args.json")
    assert (arguments["lr"], arguments["weight_decay"], arguments["epoch_step"]) == (0.1, 5e-4, [60, 120, 160])
    state = load(teacher)
    assert state["epoch"] == 2 and Config.from_dict(state["config"]) == config
    assert {name: len(values) for name, values in state["history"].items()} == dict.fromkeys(trainer.HISTORY, 2)
    assert state["history"]["val_errors"][-1] == results["final validation error"]
    assert tags(teacher) == dict.fromkeys(
        ["learning_rate", "train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5"]
        + ["train_frob_penalty", "train/loss", "train/accuracy", "valid/loss", "valid/accuracy", "hyper/lr"], 2
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        (["--conv", "Tucker_0.5", "--wrn_width", 0.5, "--alpha", 0.5], []),
        (["--conv", "Conv", "--target-ratio", 0.3, "--spectral", "--wd2fd", "--wrn_depth", 16], ["train_frob_penalty"]),
        (["--conv", "Shuffle_2", "--AT_split", 1, "--clip_grad", 1.0, "--kl_reduction", "batchmean"], []),
    ],
)
def test_students_of_a_teacher(study, teacher, tmp_path, capsys, flags, more):
    before = load(teacher)["state_dict"]
    study.run("student", "-t", teacher, "-s", tmp_path / "student", *flags)
    assert files(tmp_path / "student") == RUN
    error = read(teacher)["final validation error"]
    assert f"teacher: error {error:.2f}% of 10 images" in capsys.readouterr().out
    assert load(tmp_path / "student")["epoch"] == 2
    assert set(more) <= tags(tmp_path / "student").keys()
    assert all(torch.equal(value, before[name]) for name, value in load(teacher)["state_dict"].items())
    assert files(teacher) == RUN


def test_a_teacher_is_given_as_a_file_and_matters(study, teacher, tmp_path):
    for name, flags in (("plain", ["--beta", 0]), ("taught", [])):
        study.run("student", "-t", teacher / "checkpoint.t7", "-s", tmp_path / name, "--conv", "Sep", *flags)
    plain, taught = load(tmp_path / "plain"), load(tmp_path / "taught")
    assert taught["history"]["train_losses"][0] > plain["history"]["train_losses"][0]


class Killed(Exception):
    pass


@pytest.mark.parametrize("mode", ["teacher", "student"])
def test_a_continued_run_is_the_run_that_was_never_stopped(study, teacher, tmp_path, monkeypatch, mode):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["--conv", "Generic_0.3", "--wd2fd", "--epochs", 3, "--epoch_step", "[1,2]", "--seed", 5]
    own = {"teacher": "-t", "student": "-s"}[mode]
    flags += ["-t", teacher, "--alpha", 0.3] if mode == "student" else []
    study.run(mode, *flags, own, whole)
    train_epoch = Classifier.train_epoch

    def killed_in_epoch_1(self, batches, epoch):
        averages = train_epoch(self, batches, epoch)
        if epoch == 1:
            raise Killed
        return averages

    monkeypatch.setattr(Classifier, "train_epoch", killed_in_epoch_1)
    with pytest.raises(Killed):
        study.run(mode, *flags, own, parts, "--resume")
    assert load(parts)["epoch"] == 1 and not (parts / "results.json").exists()
    monkeypatch.undo()
    study.run(mode, *flags, own, parts, "-r")
    one, other = load(whole), load(parts)
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert one["history"] == other["history"] and one["best_error"] == other["best_error"]
    assert tags(parts)["val_top1"] == 3
    with pytest.raises(SystemExit) as stop:
        study.run(mode, *flags, own, parts, "-r")
    assert stop.value.code == 0
    with pytest.raises(UserError, match="lr 0.1, not 0.2"):
        study.run(mode, *flags, own, parts, "-r", "--lr", 0.2)


def test_a_folder_with_a_run_is_left_alone(study, teacher, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(teacher, folder)
    before = snapshot(folder)
    for suffix in ("1", "2"):
        study.run("teacher", "--conv", "Sep", "-t", folder, "--epochs", 1)
        assert f"run.{suffix}" in capsys.readouterr().out
        assert files(tmp_path / f"run.{suffix}") == RUN
        assert read(tmp_path / f"run.{suffix}", "args.json")["teacher_checkpoint"] == str(tmp_path / f"run.{suffix}")
    assert snapshot(folder) == before


def test_a_python_file_of_convolutions(study, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "class Conv(torch.nn.Conv2d):\n"
        "    def __init__(self, *args, **options):\n"
        "        super().__init__(*args, **options, bias=False)\n"
    )
    study.run("teacher", "--module", file, "-t", tmp_path / "t", "--epochs", 1)
    assert read(tmp_path / "t")["compression ratio"] == 1
    with pytest.raises(UserError, match="come from a Python file"):
        study.run("student", "-t", tmp_path / "t", "-s", tmp_path / "s", "--conv", "Sep")
    study.run("student", "-t", tmp_path / "t", "-s", tmp_path / "s", "--conv", "Sep", "--module", file, "--epochs", 1)
    assert files(tmp_path / "s") == RUN


def test_held_out_images(study, tmp_path):
    study.run("teacher", "--conv", "Sep", "-t", tmp_path / "t", "--holdout", 5, "--epochs", 1)
    results = read(tmp_path / "t")
    assert results["validation images"] == "5 held out of the training images"
    assert 0 <= results["final test error"] <= 100


def test_same_seed_same_numbers(study, tmp_path):
    losses = []
    for number, seed in enumerate((1, 1, 2)):
        study.run("teacher", "--conv", "LR_0.5", "-t", tmp_path / str(number), "--seed", seed, "--epochs", 1,
                  "--wrn_width", 1)  # fmt: skip
        losses.append(load(tmp_path / str(number))["history"]["train_losses"])
    assert losses[0] == losses[1] != losses[2]


# Settings


def completed(*flags: object):
    return settings.build_parser().parse_args(["cifar10", "teacher", *map(str, flags)])


def test_recipes_are_defaults():
    args = completed("--conv", "Sep", "--network", "MobileNetV2")
    assert (args.batch_size, args.epochs, args.lr, args.weight_decay) == (256, 150, 0.05, 4e-5)
    args = completed("--conv", "Sep", "--network", "DARTS", "--epochs", 3, "--lr", 0.5)
    assert (args.batch_size, args.epochs, args.lr, args.weight_decay) == (96, 3, 0.5, 3e-4)
    assert trainer.learning_rate(args, 0) == 0.5 and trainer.learning_rate(args, 3) == pytest.approx(0, abs=1e-12)
    args = completed("--conv", "Sep", "--network", "WRN_50_2")
    assert [trainer.learning_rate(args, epoch) for epoch in (0, 29, 30, 60)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    args = completed("--conv", "Sep")
    rates = {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 160: 0.0008, 199: 0.0008}
    assert {epoch: trainer.learning_rate(args, epoch) for epoch in rates} == pytest.approx(rates)
    args = completed("--conv", "Sep", "--network", "DARTS")
    assert trainer.learning_rate(args, 150) == pytest.approx(0.0125 * (1 + math.cos(math.pi / 4)))


def test_published_defaults():
    published = {
        "resume": "", "device": "auto", "student_checkpoint": "wrn_40_2_student_KT", "module": None,
        "teacher_checkpoint": "wrn_40_2_T", "network": "WideResNet", "wrn_depth": 40, "wrn_width": 2,
        "blocktype": "Basic", "AT_split": 1, "budget": None, "lr": 0.1, "momentum": 0.9, "lr_decay_ratio": 0.2,
        "temperature": 4, "alpha": 0, "aux_loss": "AT", "beta": 1000, "epoch_step": [60, 120, 160], "epochs": 200,
        "print_freq": 10, "batch_size": 128, "weight_decay": 5e-4, "nocrswd": False, "clip_grad": None,
        "rank_scale": 0, "target_ratio": 0, "wd2fd": False, "spectral": False, "workers": 2, "imagenet_loc": None,
    }  # fmt: skip
    found = plain(completed("--conv", "Conv"))
    assert {name: found[name] for name in published} == published


def test_flags_of_the_published_command_lines():
    args = completed(
        "--wrn_depth", 28, "--wrn_width", 10, "--conv", "TensorTrain_0.234", "-t", "somewhere", "--spectral", "--wd2fd",
        "--GPU", 0, "--imagenet_loc", "x", "--workers", 3, "--print_freq", 5, "--epoch_step", "[2, 4]",
        "--lr_decay_ratio", 0.1, "--temperature", 2, "--alpha", 0.9, "--aux_loss", "AT", "--beta", 10, "--AT_split", 2,
        "--blocktype", "Basic", "--momentum", 0.8, "--batch_size", 64, "--weight_decay", 1e-4, "--nocrswd",
        "--clip_grad", 5, "--student_checkpoint", "other", "--epochs", 7,
    )  # fmt: skip
    assert (args.device, args.teacher_checkpoint, args.epoch_step) == ("0", Path("somewhere"), [2, 4])


def test_budget_names_the_class():
    shape = {"depth": 10, "width": 1}
    budget = trainer.networks.count(Config("WideResNet", tuple("0123456789"), "Shuffle_4", **shape)) + 20
    flags = ["--wrn_depth", 10, "--wrn_width", 1, "--budget", budget]
    assert completed("--conv", "Shuffle", *flags).conv == "Shuffle_4"
