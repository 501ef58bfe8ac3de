"""The 37 settings of the tensor study, and that `main.py` takes their command lines."""

import json
from collections import Counter

import main as trainer
import pytest
import torch
from deficient import settings

from lab import devices
from lab.data import images
from paper.scripts import markers
from paper.tensors import TENSOR

SETTINGS = {setting.name: setting for setting in TENSOR.settings}


def arguments(setting, trial: int = 2):
    values = dict(setting.variables) | {"TRIAL": str(trial), "GPU": "auto", "LOGDIR": "logs"}
    (command,) = setting.commands
    program, *tokens = TENSOR.argv(command)
    assert program == "main.py"
    values["CONV"] = values["CONV"].replace("$RATIO", values["RATIO"])
    return settings.build_parser().parse_args([values.get(token.removeprefix("$"), token) for token in tokens])


def test_counts_and_times():
    assert len(SETTINGS) == len(TENSOR.settings) == 37
    assert Counter(name.split("-")[0] for name in SETTINGS) == {"Conv": 13, "TensorTrain": 12, "Tucker": 12}
    assert sum(3 * setting.minutes for setting in TENSOR.settings) == 333 * 60
    assert Counter(name.split("-")[2] for name in SETTINGS) == {
        "reglr": 7, "spectral": 6, "crs": 6, "spectral+crs": 6, "frob": 6, "spectral+frob": 6,
    }  # fmt: skip


def test_names_and_folders():
    expected = {
        "Tucker-0.68-spectral+crs": "results/Tucker-wrn_28_10-cifar10/0.68/spectral+crs/2/results.json",
        "Conv-0.0-reglr": "results/Conv-wrn_28_10-cifar10/0.0/reglr/2/results.json",
        "TensorTrain-0.234-spectral": "results/TensorTrain-wrn_28_10-cifar10/0.234/spectral/2/results.json",
    }
    assert {name: markers(SETTINGS[name], [2], "results")[0] for name in expected} == expected


@pytest.mark.parametrize("name", SETTINGS)
def test_the_trainer_takes_every_command(name):
    args = arguments(SETTINGS[name])
    decomposition, ratio, method = name.split("-")
    assert (args.wrn_depth, args.wrn_width, args.epochs, args.seed, args.resume) == (28, 10, 200, 2, "auto")
    assert args.conv == ("Conv" if decomposition == "Conv" else f"{decomposition}_{ratio}")
    assert args.target_ratio == (float(ratio) if decomposition == "Conv" else 0)
    assert args.spectral == ("spectral" in method) and args.wd2fd == ("frob" in method)
    assert args.nocrswd == (not {"crs", "frob"} & set(method.split("+")))


# The documentation's two commands, but for the folder.
COMMANDS = [
    f"cifar10 teacher --wrn_depth 28 --wrn_width 10 {conv} --spectral --wd2fd".split()
    for conv in ("--conv Conv --target-ratio 0.06667", "--conv TensorTrain_0.234")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_two_commands_of_the_documentation(command, tmp_path):
    args = settings.build_parser().parse_args([*command, "-t", str(tmp_path)])
    with_defaults = (args.batch_size, args.epochs, args.lr, args.weight_decay, args.device)
    assert with_defaults == (128, 200, 0.1, 5e-4, "auto")
    with trainer.open_run(args, devices.start(args)) as run:
        assert (run.folder, run.source) == (tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "parameters"), list(zip(COMMANDS, (2_435_034, 607_160))))
def test_the_two_commands_take_steps_at_full_size(command, parameters, tmp_path, monkeypatch):
    """A batch of 128 images and one of 8."""
    few = [part.split(count, None)[1] for part, count in zip(images.load("digits", tmp_path), (136, 10))]
    monkeypatch.setitem(images.LOADERS, "digits", lambda data_dir: few)
    trainer.main([*command, "-t", str(tmp_path), "--data", "digits", "--epochs", "1"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["compressed parameter count"] == parameters
    state = torch.load(tmp_path / "checkpoint.t7", weights_only=True)
    assert state["optimizer"]["state"] and 0 < state["history"]["train_losses"][0] < 10
