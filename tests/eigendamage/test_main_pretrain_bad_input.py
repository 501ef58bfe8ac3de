"""A mistake of the user's is one line that says what is wrong and what would be right; nothing on disk is changed."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import main_pretrain
import pytest
import torch

from lab.cli import launch
from tests.eigendamage import tiny
from tests.harness import REPOSITORY, assert_mistake, environment
from tests.lab.images import write_image

LIKE = "--rank-scale 0.05 --wd2fd"  # the flags of the finished run

# What is typed, and what the message must contain: what is wrong, and what would be right.
CASES = {
    "unknown network": ("--network alexnet", "alexnet", "vgg", "resnet", "presnet"),
    "depth of no vgg": ("--network vgg --depth 12", "11, 13, 16, 19", "not 12"),
    "depth of no resnet": ("--network resnet --depth 19", "6n + 2", "not 19"),
    "depth of no presnet": ("--network presnet --depth 19", "9n + 2", "not 19"),
    "depth that is no number": ("--depth deep", "--depth", "deep"),
    "batch size that is no integer": ("--batch_size 128.0", "--batch-size", "an integer at least 1, not 128.0"),
    "empty batches": ("--batch_size 0", "--batch-size", "at least 1, not 0"),
    "negative epochs": ("--epoch -1", "--epochs", "at least 0, not -1"),
    "negative decay": ("--weight_decay -0.1", "--weight-decay", "a number at least 0, not -0.1"),
    "rate that is no number": ("--learning_rate nan", "--lr", "a number at least 0, not nan"),
    "negative scale": ("--rank-scale -1", "--rank-scale", "at least 0, not -1"),
    "ratio that is no number": ("--target-ratio nan", "--target-ratio", "at least 0, not nan"),
    "scale and ratio": ("--rank-scale 0.1 --target-ratio 0.1", "--rank-scale or --target-ratio, not both"),
    "unreachable ratio": ("--target-ratio 0.001 --strict", "0.001 is unreachable", "rank scales up to 1 give"),
    "strict without ratio": ("--rank-scale 0.1 --strict", "--strict", "without --target-ratio"),
    "spectral without factors": ("--spectral", "--spectral has no effect without --rank-scale"),
    "Frobenius decay without factors": ("--wd2fd", "--wd2fd has no effect without --rank-scale"),
    "no such data": ("--dataset cifar20", "no data set or folder cifar20", "cinic-10, tiny_imagenet"),
    "data that must be fetched by hand": ("--dataset cinic-10", "cinic-10", "unpack CINIC-10.tar.gz from https://"),
    "unfinished archive": ("--dataset tiny_imagenet", "line 1: there is no", "val_0.JPEG", "unpack the archive again"),
    "too many held out": ("--holdout 48", "--holdout 48 leaves none of the 48"),
    "unknown device": ("--device tpu", "auto, cpu, cuda or the number of a GPU, not tpu"),
    "absent device": ("--device 77", "--device 77 is not there", "--device cpu"),
    "unknown precision": ("--amp fp8", "fp8", "bf16"),
    "negative seed": ("--seed -1", "--seed", "at least 0"),
    "abbreviated flag": ("--spect", "--spect"),
    "finished run": ("--log_dir run", "run already holds a run", "--resume auto", "--overwrite", "another folder"),
    "another run": ("--log_dir stopped --auto-resume --depth 14", "depth 8, not 14", "the same arguments"),
    "foreign arguments": ("--log_dir foreign --auto-resume", "args.json cannot be read"),
    "folder that is a file": ("--log_dir text.t7", "cannot write into text.t7"),
    "nothing to continue": ("--resume --log_dir new", "--resume new/checkpoint.t7: no such file"),
    "no such checkpoint": ("--load_path nowhere.t7", "--resume nowhere.t7: no such file"),
    "text as checkpoint": ("--load_path text.t7", "text.t7 is not a readable checkpoint"),
    "truncated checkpoint": ("--load_path truncated.t7", "truncated.t7 is not a readable checkpoint", "truncated"),
    "pickled code as checkpoint": ("--load_path code.t7", "code.t7 is not a readable checkpoint"),
    "tensor as checkpoint": ("--load_path tensor.t7", "tensor.t7 holds no network"),
    "checkpoint of a factorized network": ("--load_path run/checkpoint.t7", "another network", "absent"),
    "checkpoint of another rank": ("--rank-scale 0.5 --load_path run/best.t7", "another network", "layer1.0.conv1.U"),
    "checkpoint with other decay": ("--rank-scale 0.05 --load_path run/checkpoint.t7", "--wd2fd", "same flags"),
    "checkpoint of a longer run": (f"--epoch 1 --load_path run/checkpoint.t7 {LIKE}", "2 epochs", "--epochs is 1"),
    "two ways to continue": ("--resume --auto-resume", "only one of --auto-resume, --resume"),
    "continue and replace": ("--auto-resume --overwrite", "give only one"),
    "continue what is there and replace it": ("--resume --overwrite", "--resume continues", "give only one"),
    "continue another run": (f"{LIKE} --load_path run/checkpoint.t7 --weight_decay 0.5", "weight_decay", "not 0.5"),
    "files of unknown origin": ("--auto-resume --log_dir stray", "no args.json", "--overwrite"),
    "no checkpoint of a continued run": ("--auto-resume --log_dir begun", "no checkpoint yet", "began with x.t7"),
    "Kaiming start of nothing": ("--network resnet --depth 8 --kaiming", "--kaiming has no effect on a resnet"),
    "depth, before data are fetched": ("--dataset cinic-10 --network vgg --depth 12", "not 12"),
    "images too small": ("--network vgg --depth 11 --dataset eight", "8 x 8 pixels", "use larger images"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a finished run, a stopped one, and files that are wrong in many ways."""
    world = tmp_path_factory.mktemp("world")
    folder = tiny.train(world / "run", LIKE)
    shutil.copytree(folder, world / "stopped")
    (world / "stopped" / "results.json").unlink()
    (world / "foreign").mkdir()
    (world / "stray").mkdir()
    shutil.copy(folder / "best.t7", world / "stray")
    (world / "begun").mkdir()
    arguments = json.loads((folder / "args.json").read_text())
    arguments |= {"load_path": "x.t7", "rank_scale": 0.0, "wd2fd": False}
    (world / "begun" / "args.json").write_text(json.dumps(arguments))
    for part in ("train", "test"):
        write_image(world / "eight" / part / "a" / "0.png", size=8)
    (world / "foreign" / "args.json").write_text("[0.1]")
    (world / "text.t7").write_text("weights")
    (world / "truncated.t7").write_bytes((folder / "checkpoint.t7").read_bytes()[:5000])
    (world / "code.t7").write_bytes(pickle.dumps(Path("no tensor")))
    torch.save(torch.ones(3), world / "tensor.t7")
    write_image(world / "data" / "tiny_imagenet" / "train" / "n01" / "images" / "n01_0.JPEG")
    (world / "data" / "tiny_imagenet" / "val").mkdir()
    (world / "data" / "tiny_imagenet" / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t9\t9\n")
    return world


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(world, case, monkeypatch, capfd):
    typed, *expected = CASES[case]
    monkeypatch.chdir(world)
    argv = [*tiny.BASE, "--data-dir", "data", "--log_dir", "new", *typed.split()]
    assert_mistake(lambda: main_pretrain.main(argv), "main_pretrain.py", capfd, expected, world)


def test_a_mistake_at_the_real_command_line(world):
    program = REPOSITORY / "EigenDamage-Pytorch" / "main_pretrain.py"
    command = [sys.executable, str(program), "--rank-scale", "0.1", "--target-ratio", "0.1"]
    done = subprocess.run(command, cwd=world, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "main_pretrain.py: error: give --rank-scale or --target-ratio, not both\n"


def test_an_unreachable_ratio_is_one_line_of_warning(tmp_path, capfd):
    with pytest.raises(SystemExit) as left:
        launch(lambda: tiny.train(tmp_path, "--epoch 0 --target-ratio 0.001"), "main_pretrain.py")
    assert left.value.code == 0
    err = capfd.readouterr().err
    assert err.startswith("main_pretrain.py: warning: ratio 0.001 is unreachable") and err.count("\n") == 1
