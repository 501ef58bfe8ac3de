"""The trainer on tiny images, so that an epoch takes a fraction of a second: 48 and 16 digits of 16 x 16 pixels.

`python -m tests.eigendamage.tiny FLAGS` is the trainer's command line with these in place of `--dataset digits`.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import main_pretrain
import torch

from lab.cli import run
from lab.data import images

REPOSITORY = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "tests.eigendamage.tiny")
BASE = "--dataset digits --network resnet --depth 8 --epoch 2 --batch_size 16 --device cpu --weight_decay 1e-4".split()

_all_digits = images.LOADERS["digits"]


def digits(data_dir: Path) -> tuple[images.ImageSet, images.ImageSet]:
    """Return the training and test images, some of them, and every second pixel of each."""
    parts = zip(_all_digits(data_dir), (48, 16))
    return tuple(replace(p, images=p.images[:n, :, ::2, ::2], labels=p.labels[:n]) for p, n in parts)


def train(folder: Path, flags: str = "") -> Path:
    """Run the trainer in this process, for two epochs of three batches if the flags do not say otherwise."""
    main_pretrain.main([*BASE, "--log_dir", str(folder), *flags.split()])
    return folder


def results(folder: Path) -> dict:
    """Return `results.json`."""
    return json.loads((folder / "results.json").read_text())


def checkpoint(folder: Path, name: str = "checkpoint.t7") -> dict:
    """Return what a file of a run holds."""
    return torch.load(folder / name, weights_only=True)


def environment() -> dict[str, str]:
    """Return the environment of a process that runs `COMMAND`."""
    paths = (str(REPOSITORY), str(REPOSITORY / "EigenDamage-Pytorch"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    images.LOADERS["digits"] = digits
    run(main_pretrain.main, "main_pretrain.py")
