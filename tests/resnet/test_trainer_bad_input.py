"""A mistake of the user's is one line that says what is wrong and what would be right; nothing on disk is changed."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainer
from PIL import Image

from lab.cli import launch
from tests.harness import REPOSITORY, assert_mistake, environment, results, snapshot
from tests.resnet import tiny

LIKE = "--rank-scale 0.111 --wd2fd --dump-frobnorms"  # the flags of the finished run
IMPOSE = "--rank-scale 0.111 --normalize"

# What is typed, and what the message must contain: what is wrong, and what would be right.
CASES = {
    "unknown network": ("--arch resnet18", "resnet18", "resnet20"),
    "negative scale": ("--rank-scale -1", "--rank-scale", "at least 0, not -1"),
    "scale that is no number": ("--rank-scale nan", "--rank-scale", "at least 0, not nan"),
    "infinite scale": ("--rank-scale inf", "--rank-scale", "at least 0, not inf"),
    "scale that is a word": ("--rank-scale tenth", "--rank-scale", "tenth"),
    "negative ratio": ("--target-ratio -0.5", "--target-ratio", "at least 0, not -0.5"),
    "scale and ratio": ("--rank-scale 0.1 --target-ratio 0.1", "--rank-scale or --target-ratio, not both"),
    "unreachable ratio": ("--target-ratio 0.001 --strict", "0.001 is unreachable", "rank scales up to 1 give"),
    "strict without ratio": ("--strict", "--strict", "without --target-ratio"),
    "no such data": ("--data nowhere", "no data set or folder nowhere", "cifar10"),
    "capitals": ("--data CIFAR100", "CIFAR100", "cifar100"),
    "folder without train": ("--data empty", "empty", "folder train, and test or val"),
    "class without images": ("--data no_images", "has no images", ".png"),
    "damaged image": ("--data damaged", "broken.png is not a readable image"),
    "batch of one value": ("--data four", "4 x 4 pixels in batches that may have 1", "use larger images"),
    "images of two sizes": ("--data two_sizes", "must have one size", "8 x 8", "9 x 9"),
    "text as checkpoint": ("--resume text.th", "text.th is not a readable checkpoint"),
    "truncated checkpoint": ("--resume truncated.th", "truncated.th is not a readable checkpoint", "truncated"),
    "pickled code as checkpoint": ("--resume code.th", "code.th is not a readable checkpoint"),
    "tensor as checkpoint": ("--resume tensor.th", "tensor.th holds no network", "state_dict"),
    "names without tensors": ("--resume names.th", "names.th is of another network", "conv1.weight"),
    "checkpoint of another depth": (f"--arch resnet32 --resume run/checkpoint.th {LIKE}", "another network"),
    "checkpoint of another rank": ("--rank-scale 0.2 --resume run/model.th", "another network", "layer1.0.conv1.U"),
    "checkpoint of a dense network": ("--resume run/model.th", "another network", "absent"),
    "checkpoint with other decay": ("--rank-scale 0.111 --resume run/checkpoint.th", "--wd2fd", "same flags"),
    "checkpoint of a longer run": (f"--epochs 1 --resume run/model.th {LIKE}", "2 epochs already, --epochs is 1"),
    "no such checkpoint": ("--resume nowhere.th", "--resume nowhere.th: no such file"),
    "checkpoint without its recording": (f"--resume alone/checkpoint.th {LIKE}", "frobnorms.tensor"),
    "checkpoint with a short recording": (f"--epochs 3 --resume run/model.th {LIKE}", "(2, 3, 18)", "(3, 3, 18)"),
    "evaluate nothing": ("--evaluate", "--evaluate needs --resume"),
    "evaluate an empty folder": ("--evaluate --resume auto", "no such file"),
    "evaluate another network": ("--evaluate --resume run/model.th", "another network"),
    "no such recording": (f"{IMPOSE} nowhere", "no such file: nowhere"),
    "recording of other length": (f"--epochs 1 {IMPOSE} run/frobnorms.tensor", "(2, 3, 18)", "(1, 3, 18)"),
    "recording of other batches": (f"-b 48 {IMPOSE} run/frobnorms.tensor", "(2, 3, 18)", "(2, 2, 18)"),
    "recording of other layers": (f"-a resnet32 {IMPOSE} run/frobnorms.tensor", "(2, 3, 18)", "(2, 3, 30)"),
    "damaged recording": (f"{IMPOSE} truncated.th", "truncated.th is not a readable"),
    "recording that is a checkpoint": (f"{IMPOSE} run/checkpoint.th", "dict", "(2, 3, 18)"),
    "recording of an unfinished run": (f"{IMPOSE} zeros.tensor", "zeros.tensor", "positive"),
    "recording of whole numbers": (f"{IMPOSE} integers.tensor", "integers.tensor", "float"),
    "folder of a run": ("--save-dir run", "already holds a run", "--resume auto", "--overwrite", "another folder"),
    "run with other arguments": ("--save-dir stopped --resume auto --lr 0.5", "lr 0.1, not 0.5", "same arguments"),
    "damaged arguments": ("--save-dir damaged_args --resume auto", "args.json cannot be read", "another folder"),
    "foreign arguments": ("--save-dir foreign_args --resume auto", "args.json cannot be read", "another folder"),
    "folder below a file": ("--save-dir text.th/run", "cannot write into text.th/run", "Not a directory"),
    "folder that is a file": ("--save-dir text.th", "text.th", "directory|exists"),
    "no epochs": ("--epochs 0", "--epochs", "an integer at least 1, not 0"),
    "half an epoch": ("--epochs 0.5", "--epochs", "an integer at least 1, not 0.5"),
    "no images in a batch": ("--batch-size 0", "--batch-size", "at least 1, not 0"),
    "negative learning rate": ("--lr -0.1", "--lr", "a number at least 0, not -0.1"),
    "decay that is no number": ("--weight-decay nan", "--weight-decay", "a number at least 0, not nan"),
    "momentum of 2": ("--momentum 2", "--momentum", "at most 1, not 2"),
    "GPU that is not there": ("--device 99", "--device 99 is not there", "cpu"),
    "device that is a word": ("--device toaster", "auto, cpu, cuda", "toaster"),
    "device that is no digit": ("--device ²", "auto, cpu, cuda"),
    "noise without a middle factor": ("--residual 0.1 --rank-scale 1", "--residual has no effect without --square"),
    "deep without factors": ("--square", "--square has no effect without --rank-scale"),
    "spectral without factors": ("--spectral", "--spectral has no effect without --rank-scale"),
    "Frobenius decay without factors": ("--wd2fd", "--wd2fd has no effect without --rank-scale"),
    "no Frobenius decay without it": ("--no-frob --rank-scale 1", "--no-frob has no effect without --wd2fd"),
    "recording a dense network": ("--dump-frobnorms", "--dump-frobnorms has no effect without --rank-scale"),
    "imposing on a dense network": ("--normalize run/frobnorms.tensor", "no effect without --rank-scale"),
    "all images held out": ("--holdout 96", "--holdout 96", "none of the 96 training images"),
    "start after the end": ("--start-epoch 2", "--start-epoch 2 leaves nothing of --epochs 2"),
    "removed flag": ("--pretrained", "--pretrained", "--resume FILE"),
    "unknown flag": ("--optimizer adam", "--optimizer"),
    "abbreviated flag": ("--rank 0.1", "--rank"),
    "negative seed": ("--seed -1", "--seed", "an integer at least 0"),
    "seed that is a word": ("--seed seven", "--seed", "an integer at least 0", "not seven"),
    "seed of many digits": (f"--seed {'9' * 20}", "--seed", "at most"),
    "seed of very many digits": (f"--seed {'9' * 400}", "--seed", "at most"),
    "negative interval of checkpoints": ("--save-every -1", "--save-every", "at least 0, not -1"),
    "no batches between lines": ("--print-freq 0", "--print-freq", "at least 1, not 0"),
    "unknown precision": ("--amp int8", "int8", "bf16"),
    "unknown path": ("--rank-path short --rank-scale 1", "short", "composed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a finished run, a stopped one, and files and folders that are wrong in many ways."""
    world = tmp_path_factory.mktemp("world")
    run_folder = tiny.train(world / "run", *LIKE.split())
    shutil.copytree(run_folder, world / "stopped")
    (world / "stopped" / "results.json").unlink()
    for name in ("alone", "damaged_args", "foreign_args"):
        (world / name).mkdir()
    shutil.copy(run_folder / "checkpoint.th", world / "alone")
    (world / "damaged_args" / "args.json").write_text('{"lr": 0.1,')
    (world / "foreign_args" / "args.json").write_text("[0.1]")

    (world / "text.th").write_text("weights")
    (world / "truncated.th").write_bytes((run_folder / "checkpoint.th").read_bytes()[:5000])
    (world / "code.th").write_bytes(pickle.dumps(Path("no tensor")))
    torch.save(torch.ones(3), world / "tensor.th")
    torch.save({"state_dict": {"conv1.weight": None}}, world / "names.th")
    torch.save(torch.zeros(2, 3, 18), world / "zeros.tensor")
    torch.save(torch.ones(2, 3, 18, dtype=torch.int64), world / "integers.tensor")

    for name in ("data", "empty", "no_images", "damaged", "two_sizes"):
        (world / name).mkdir()
    for name in ("no_images", "damaged", "two_sizes"):
        for part in ("train", "test"):
            (world / name / part / "one").mkdir(parents=True)
    for name in ("damaged", "two_sizes"):
        for part in ("train", "test"):
            Image.new("RGB", (8, 8)).save(world / name / part / "one" / "a.png")
    (world / "damaged" / "train" / "one" / "broken.png").write_bytes(b"\x89PNG\r\n")
    for part in ("train", "test"):
        (world / "four" / part / "one").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(world / "four" / part / "one" / "a.png")
    Image.new("RGB", (9, 9)).save(world / "two_sizes" / "test" / "one" / "b.png")
    return world


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(world, case, monkeypatch, capfd):
    typed, *expected = CASES[case]
    monkeypatch.chdir(world)
    argv = [*tiny.BASE, "--data-dir", "data", "--save-dir", "new", *typed.split()]
    assert_mistake(lambda: trainer.main(argv), "trainer.py", capfd, expected, world)


@pytest.mark.parametrize("case", ["unknown flag", "truncated checkpoint"])
def test_a_mistake_at_the_real_command_line(world, case):
    typed, *expected = CASES[case]
    before = snapshot(world)
    program = REPOSITORY / "pytorch_resnet_cifar10" / "trainer.py"
    command = [sys.executable, str(program), *tiny.BASE, "--save-dir", "new", *typed.split()]
    alone = environment()
    del alone["PYTHONPATH"]  # the installed package and the script's own folder are enough
    ran = subprocess.run(command, cwd=world, env=alone, capture_output=True, text=True, timeout=300)
    assert ran.stderr.startswith("trainer.py: error: ") and ran.stderr.count("\n") == 1
    for fragment in expected:
        assert fragment in ran.stderr
    assert ran.returncode == 2
    assert snapshot(world) == before


def test_without_strict_an_unreachable_ratio_is_a_warning(folder, capfd):
    with pytest.raises(SystemExit) as exit:
        launch(lambda: tiny.train(folder, *"--target-ratio 0.001 --epochs 1".split()), "trainer.py")
    assert exit.value.code == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("trainer.py: warning: ratio 0.001 is unreachable") and "using 0.0" in line
    assert results(folder)["compression ratio"] < 0.08
