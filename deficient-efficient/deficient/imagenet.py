"""ImageNet, which does not fit into memory: its files are decoded and augmented by worker processes."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lab.cli import UserError
from lab.data.batches import MEAN, STD, Batches, generator

SIZE, LARGER = 224, 256  # side of the images, and of the shorter side before the centre is cut out of it


class StreamedBatches(Batches):
    """Batches of a folder of images: random crops, resized, and flips in training; otherwise centre crops.

    The order follows from seed and epoch, and so do the crops as long as the number of workers stays the same.
    """

    def __init__(
        self, folder: Path, batch_size: int, device: torch.device, *, train: bool, seed: int, workers: int,
        rank: int, world_size: int, channels_last: bool,
    ):  # fmt: skip
        # Nothing of the images in memory that the base class prepares; its counting needs these alone.
        self.batch_size, self.train, self.seed, self.rank, self.world_size = batch_size, train, seed, rank, world_size
        augmented = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        centred = [transforms.Resize(LARGER), transforms.CenterCrop(SIZE)]
        steps = [*(augmented if train else centred), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        try:
            self.data = ImageFolder(folder, transforms.Compose(steps))
        except FileNotFoundError:
            raise UserError(
                f"no folders of images in {folder}: --imagenet_loc must hold train/CLASS/* and val/CLASS/*"
            ) from None
        self._check_shares()
        self.device, self.workers = device, workers
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return SIZE, SIZE

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images (batch, 3, 224, 224) and labels (batch,) of pass `index` on the device."""
        numbers = generator(self.seed, index)
        count = len(self.data)
        order = (torch.randperm(count, generator=numbers) if self.train else torch.arange(count)).tolist()
        parts = [order[slice(*self._part(batch))] for batch in range(len(self))]
        on_gpu = self.device.type == "cuda"
        loaded = iter(
            DataLoader(
                self.data,
                batch_sampler=[part for part in parts if part],
                num_workers=self.workers,
                generator=numbers,
                pin_memory=on_gpu,
            )
        )
        nothing = torch.empty(0, 3, SIZE, SIZE), torch.empty(0, dtype=torch.long)
        for part in parts:
            images, labels = next(loaded) if part else nothing
            images = images.to(self.device, memory_format=self._memory_format, non_blocking=on_gpu)
            yield images, labels.to(self.device, non_blocking=on_gpu)


def load(folder: Path, batch_size: int, device: torch.device, **options) -> tuple[StreamedBatches, StreamedBatches]:
    """Return the batches of `folder/train` for training, and of `folder/val`.

    Raises:
        UserError: if there are no images, or if the two have different classes.
    """
    train = StreamedBatches(folder / "train", batch_size, device, train=True, **options)
    valid = StreamedBatches(folder / "val", min(100, batch_size), device, train=False, **options)
    if train.data.classes != valid.data.classes:
        raise UserError(f"{folder / 'train'} and {folder / 'val'} must hold the same classes")
    return train, valid
