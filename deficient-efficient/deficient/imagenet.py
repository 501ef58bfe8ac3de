"""ImageNet, which does not fit into memory: its files are decoded and augmented by worker processes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lab.cli import RunError, UserError
from lab.data import folder as image_folder
from lab.data.batches import MEAN, STD, Batches, generator
from lab.data.decoding import decode
from lab.devices import Computing

SIZE, LARGER = 224, 256  # side of the images, and of the shorter side before the centre is cut out of it

MOST_WORKERS = max(32, 4 * (os.cpu_count() or 1))


class ImageFiles(Dataset):
    """Image files, decoded and transformed when they are asked for, with their labels."""

    def __init__(
        self, files: list[tuple[str, int]], classes: tuple[str, ...], transform: Callable[[Image.Image], Tensor]
    ):
        self.files, self.classes, self.transform = files, classes, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.files[index]
        return self.transform(decode(file)), label


class StreamedBatches(Batches):
    """Batches of a folder of images: random crops, resized, and flips in training; otherwise centre crops.

    The order follows from seed and epoch, and so do the crops as long as the number of workers stays the same.
    """

    def __init__(
        self, files: list[tuple[str, int]], classes: tuple[str, ...], batch_size: int, computing: Computing, *,
        train: bool, seed: int, workers: int, channels_last: bool,
    ):  # fmt: skip
        # Nothing of the images in memory that the base class prepares; its counting needs these alone.
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.rank, self.world_size, self.device = computing.rank, computing.world_size, computing.device
        augmented = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        centred = [transforms.Resize(LARGER), transforms.CenterCrop(SIZE)]
        steps = [*(augmented if train else centred), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.data = ImageFiles(files, classes, transforms.Compose(steps))
        self._check_shares()
        self.workers = workers
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
            images, labels = _next(loaded) if part else nothing
            images = images.to(self.device, memory_format=self._memory_format, non_blocking=on_gpu)
            yield images, labels.to(self.device, non_blocking=on_gpu)


def _next(loaded: Iterator[list[Tensor]]) -> list[Tensor]:
    try:
        return next(loaded)
    except (UserError, RuntimeError) as error:  # with a worker's traceback as its message; or a worker was killed
        reason = str(error).splitlines()[-1]
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise RunError(f"images cannot be loaded any more: {reason.removeprefix('lab.cli.UserError: ')}") from None


def load(
    folder: Path, batch_size: int, computing: Computing, *, cache: Path, workers: int, **options
) -> tuple[StreamedBatches, StreamedBatches]:
    """Return the batches of `folder/train` for training, and of `folder/val`.

    Args:
        cache: folder of the note that spares the same images another check.
        options: further arguments of `StreamedBatches`.

    Raises:
        UserError: if there are no images, if one is not readable, or for more workers than the machine can use.
    """
    if workers > MOST_WORKERS:
        raise UserError(f"--workers {workers}: more than {MOST_WORKERS} are of no use on this machine")
    folder = Path(os.path.abspath(folder))
    if not os.path.isdir(folder / "train") or not os.path.isdir(folder / "val"):
        raise UserError(f"no images in {folder}: --imagenet_loc must hold train/CLASS/* and val/CLASS/*")
    classes, files = image_folder.find(folder, tests=("val",))
    image_folder.check(folder, files, cache, computing, threads=max(1, workers))
    train, valid = (
        StreamedBatches(files[part], classes, size, computing, train=part == "train", workers=workers, **options)
        for part, size in (("train", batch_size), ("test", min(100, batch_size)))
    )
    return train, valid
