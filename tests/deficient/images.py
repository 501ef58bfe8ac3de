"""A tiny data set on disk."""

from pathlib import Path

import numpy
from PIL import Image

CLASSES = tuple("abcde")


def write_images(folder: Path, classes=CLASSES, train: int = 6, test: int = 2) -> Path:
    """Write noisy images, 32 x 32, whose mean colour tells the class."""
    generator = numpy.random.default_rng(0)
    for part, number in (("train", train), ("test", test)):
        for index, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for image in range(number):
                pixels = generator.integers(0, 128, (32, 32, 3)) + 25 * index
                Image.fromarray(pixels.astype(numpy.uint8)).save(folder / part / name / f"{image}.png")
    return folder
