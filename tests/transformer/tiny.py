"""The trainer on a toy language: short strings of letters, translated by reversing them.

`python -m tests.transformer.tiny FLAGS` is the command line of train.py on one thread.
"""

import json
import os
import random
import sys
from pathlib import Path

import preprocess
import torch
import train as program

from lab.cli import run

REPOSITORY = Path(program.__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "tests.transformer.tiny")
MODEL = "--arch transformer_small --hidden-size 16 --filter-size 32 --num-layers 1 --num-heads 2"
BASE = f"{MODEL} --max-tokens 100 --max-epoch 2 --lr-scheduler inverse_sqrt --warmup-updates 10 --clip-norm 0.1"
BASE += " --device cpu"
LETTERS = "abcdefgh"


def make_data(folder: Path, sizes: dict[str, int] | None = None, longest: int = 6, letters: str = LETTERS) -> Path:
    """Write and binarize strings of letters in `de` and their mirror images in `en`; return the data folder."""
    random_letters = random.Random(5)
    for split, size in (sizes or {"train": 90, "valid": 16, "test": 8}).items():
        lines = [random_letters.choices(letters, k=random_letters.randint(1, longest)) for _ in range(size)]
        (folder / f"{split}.de").write_text("".join(f"{' '.join(line)}\n" for line in lines))
        (folder / f"{split}.en").write_text("".join(f"{' '.join(reversed(line))}\n" for line in lines))
    splits = [f"--{split}pref {folder / split}" for split in sizes or ("train", "valid", "test")]
    preprocess.main(f"-s de -t en {' '.join(splits)} --destdir {folder / 'data-bin'}".split())
    return folder / "data-bin"


def train(data: Path, folder: Path, flags: str = "") -> Path:
    """Run the trainer in this process, for two epochs of a few batches if the flags do not say otherwise."""
    program.main([str(data), *BASE.split(), "--save-dir", str(folder), *flags.split()])
    return folder


def results(folder: Path) -> dict:
    """Return `results.json`."""
    return json.loads((folder / "results.json").read_text())


def checkpoint(folder: Path, name: str = "checkpoint_last.pt") -> dict:
    """Return what a file of a run holds."""
    return torch.load(folder / name, weights_only=True)


def environment() -> dict[str, str]:
    """Return the environment of a process that runs `COMMAND`."""
    paths = (str(REPOSITORY), str(REPOSITORY / "Transformer-PyTorch"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(program.main, "train.py")
