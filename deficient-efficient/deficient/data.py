"""The image sets of the study, normalized and augmented as its networks expect them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lab.cli import UserError
from lab.data import batches
from lab.data.batches import Batches
from lab.data.images import ImageSet
from lab.devices import Computing
from lab.training import load_batches

from . import imagenet
from .settings import Training

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR10_DARTS = ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))
CIFAR100 = ((0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023))

CUTOUT = 16  # pixels; on every training image of all sets but CIFAR-100


class CutoutBatches(Batches):
    """Batches for training in which a square of every image is zero (DeVries and Taylor 2017).

    Its centre is uniform over the image, and the square is clipped at the border; zero is the mean of the data. It
    follows from seed and epoch, as all of a batch does.

    Args:
        length: side of the square, even.
    """

    def __init__(self, data: ImageSet, batch_size: int, *, length: int = CUTOUT, **options):
        super().__init__(data, batch_size, **options)
        self.length = length

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of pass `index`."""
        generator = batches.generator(self.seed, index, self.length)
        height, width = self.data.images.shape[2:]
        rows, columns = (torch.randint(size, (len(self.data),), generator=generator) for size in (height, width))
        rows, columns = rows.to(self.data.images.device), columns.to(self.data.images.device)
        for batch, (pixels, labels) in enumerate(super().epoch(index)):
            part = slice(*self._part(batch))
            yield pixels.masked_fill_(holes(rows[part], columns[part], pixels.shape[2:], self.length), 0), labels


def holes(rows: Tensor, columns: Tensor, size: tuple[int, int], length: int) -> Tensor:
    """Return which pixels are cut out, shape (batch, 1, height, width), for squares with these centres (batch,)."""
    inside = []
    for centre, count in zip((rows, columns), size):
        start = centre[:, None] - length // 2
        positions = torch.arange(count, device=centre.device)
        inside.append((positions >= start) & (positions < start + length))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def load(args: Training, computing: Computing) -> tuple[Batches, Batches, Batches]:
    """Return the batches to train on, to validate on after every epoch, and to test on at the end.

    Validation and test are the same, as in the paper, unless images are held out.

    Raises:
        UserError: if the images are not there or cannot be held out.
    """
    if args.dataset == "imagenet":
        if args.holdout or args.data:
            raise UserError("--holdout and --data have no effect on imagenet, which --imagenet_loc says where to find")
        folder = args.imagenet_loc or args.data_dir / "imagenet"
        train, valid = imagenet.load(
            folder, args.batch_size, computing, cache=args.data_dir / "cache", seed=args.seed, workers=args.workers,
            channels_last=args.channels_last,
        )  # fmt: skip
        return train, valid, valid
    mean, std = CIFAR10_DARTS if args.network == "DARTS" else CIFAR10
    if args.dataset == "cifar100":
        mean, std = CIFAR100
    return load_batches(
        args.data or args.dataset, args, computing,
        batch_size=args.batch_size, evaluation_size=min(100, args.batch_size), mean=mean, std=std,
        training=Batches if args.dataset == "cifar100" else CutoutBatches,
    )  # fmt: skip
