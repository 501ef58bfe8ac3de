"""The trainer on tiny images, so that an epoch takes a fraction of a second: 96 and 32 digits of 8 x 8 pixels.

`python -m tests.resnet.tiny FLAGS` is the trainer's command line with these in place of `--data digits`.
"""

import contextlib
import functools
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import trainer

from lab.data import images
from tests.harness import be

BASE = ("--data", "digits", "--arch", "resnet20", "--epochs", "2", "--batch-size", "32", "--device", "cpu")
FACTORIZED = ("--rank-scale", "0.111", "--wd2fd")

_all_digits = images.LOADERS["digits"]


@functools.cache
def digits(data_dir: Path | None = None) -> tuple[images.ImageSet, images.ImageSet]:
    """Return the training and test images; the full set repeats every pixel of its 8 x 8 originals."""
    parts = zip(_all_digits(data_dir), (96, 32))
    return tuple(replace(p, images=p.images[:n, :, 2::4, 2::4], labels=p.labels[:n]) for p, n in parts)


def train(folder: Path, *flags: str) -> Path:
    """Run the trainer in this process, for two epochs of three batches if the flags do not say otherwise."""
    trainer.main([*BASE, "--save-dir", str(folder), *flags])
    return folder


def stopped_after(epochs: int, folder: Path, *flags: str) -> Path:
    """Run the trainer in this process and interrupt it after so many epochs."""
    train_epoch = trainer.Classifier.train_epoch

    def interrupted(self, batches, epoch):
        if epoch == epochs:
            raise KeyboardInterrupt
        return train_epoch(self, batches, epoch)

    with mock.patch.object(trainer.Classifier, "train_epoch", interrupted), contextlib.suppress(KeyboardInterrupt):
        train(folder, *flags)
    return folder


def weights(folder: Path, name: str = "model.th") -> dict[str, torch.Tensor]:
    """Return the network in a file of a run."""
    return torch.load(folder / name, weights_only=True)["state_dict"]


def command_line(argv: list[str], log: str | None = None) -> None:
    """Be `trainer.py` with these arguments and the tiny digits."""
    images.LOADERS["digits"] = digits
    be(trainer.main, "trainer.py", argv, log)


if __name__ == "__main__":
    command_line(sys.argv[1:])
