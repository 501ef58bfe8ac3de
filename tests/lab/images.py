"""Small image sets and image files for the tests."""

from pathlib import Path

import torch
from PIL import Image

from lab.data.batches import Batches
from lab.data.images import ImageSet
from tests.harness import REPOSITORY

# A part of Tiny ImageNet, where it lies beside the checkout.
SAMPLE = REPOSITORY.parent / "shared" / "data" / "tiny-imagenet-sample.zip"


def image_set(count: int = 50, classes: int = 5, size: tuple[int, int] = (8, 6), flip: bool = True) -> ImageSet:
    """Random images without a zero in them, so that padding can be told from them; all have different first pixels."""
    images = torch.randint(1, 256, (count, 3, *size), dtype=torch.uint8)
    images[:, 0, 0, 0] = 1 + torch.arange(count)
    names = tuple(f"class {i}" for i in range(classes))
    return ImageSet(images, torch.arange(count) * 7 % classes, names, flip)


def write_image(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: int = 4, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).convert(mode).save(path)


def whole_epoch(batches: Batches, index: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches.epoch(index))
    return torch.cat(images), torch.cat(labels)
