"""Pruning of a tiny run: 48 and 16 digits of 16 x 16 pixels, a ResNet-8.

`python -m tests.eigendamage.pruning.tiny_prune FLAGS` is the command line with these digits.
"""

import sys
from pathlib import Path

import main_prune

from lab.data import images
from tests.eigendamage import tiny
from tests.harness import be

COMMAND = (sys.executable, "-m", "tests.eigendamage.pruning.tiny_prune")
BASE = "--device cpu --batch-size 16 --epochs 2".split()


def pretrain(folder: Path, flags: str = "") -> Path:
    """Leave a run of the trainer in `folder`, of one epoch."""
    return tiny.train(folder, f"--epoch 1 {flags}")


def prune(source: Path, folder: Path, flags: str = "") -> Path:
    """Prune in this process, for two epochs if the flags do not say otherwise."""
    main_prune.main([*BASE, "--from", str(source), "--save-dir", str(folder), *flags.split()])
    return folder


if __name__ == "__main__":
    images.LOADERS["digits"] = tiny.digits
    be(main_prune.main, "main_prune.py", sys.argv[1:])
