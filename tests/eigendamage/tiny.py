"""The trainer on tiny images, so that an epoch takes a fraction of a second: 48 and 16 digits of 16 x 16 pixels."""

from dataclasses import replace
from pathlib import Path

import main_pretrain
import torch

from lab.data import images
from tests.harness import be

BASE = "--dataset digits --network resnet --depth 8 --epoch 2 --batch_size 16 --device cpu --weight_decay 1e-4".split()

DEPTH = {"resnet": 32, "vgg": 19, "presnet": 20}  # of the networks whose published numbers are known

_all_digits = images.LOADERS["digits"]


def digits(data_dir: Path) -> tuple[images.ImageSet, images.ImageSet]:
    """Return the training and test images, some of them, and every second pixel of each."""
    parts = zip(_all_digits(data_dir), (48, 16))
    return tuple(replace(p, images=p.images[:n, :, ::2, ::2], labels=p.labels[:n]) for p, n in parts)


def train(folder: Path, flags: str = "") -> Path:
    """Run the trainer in this process, for two epochs of three batches if the flags do not say otherwise."""
    main_pretrain.main([*BASE, "--log_dir", str(folder), *flags.split()])
    return folder


def checkpoint(folder: Path, name: str = "checkpoint.t7") -> dict:
    """Return what a file of a run holds."""
    return torch.load(folder / name, weights_only=True)


def command_line(argv: list[str], log: str | None = None) -> None:
    """Be `main_pretrain.py` with these arguments and the tiny digits."""
    images.LOADERS["digits"] = digits
    be(main_pretrain.main, "main_pretrain.py", argv, log)
