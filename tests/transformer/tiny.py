"""The trainer on a toy language: short strings of letters, translated by reversing them.

`python -m tests.transformer.tiny FLAGS` is the command line of train.py on one thread.
"""

import random
import sys
from pathlib import Path

import preprocess
import torch
import train as program

from tests.harness import be

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


def checkpoint(folder: Path, name: str = "checkpoint_last.pt") -> dict:
    """Return what a file of a run holds."""
    return torch.load(folder / name, weights_only=True)


def command_line(argv: list[str], log: str | None = None) -> None:
    """Be `train.py` with these arguments, on one thread."""
    be(program.main, "train.py", argv, log)


if __name__ == "__main__":
    command_line(sys.argv[1:])
