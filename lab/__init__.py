"""What the experiments share when they run: devices, images, the training loop, checkpoints, records, scripts."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the repository."""


def __getattr__(name: str):
    if name == "images":  # where it was before `lab.data`
        from .data import images

        return images
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
