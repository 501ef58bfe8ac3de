"""Image sets held in memory as uint8 tensors, and where they come from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from . import image_folder
from .batches import Batches
from .cli import UserError

__all__ = ["LOADERS", "Batches", "ImageSet", "load"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their classes."""

    images: Tensor
    """uint8, shape (images, 3, height, width)"""
    labels: Tensor
    """int64, shape (images,): positions in `classes`"""
    classes: tuple[str, ...]
    flip: bool
    """whether a mirrored image keeps its class"""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the set on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def split(self, holdout: int, generator: Generator | None) -> tuple["ImageSet", "ImageSet"]:
        """Return all but `holdout` images, and those, in which every class has its share to within one image.

        Args:
            generator: draws which images of a class are held out; None takes them at equal distances.

        Raises:
            UserError: if that leaves either part empty.
        """
        count = len(self)
        if not 0 < holdout < count:
            raise UserError(f"cannot hold out {holdout} of {count} images")
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        by_class = order[self.labels.cpu()[order].argsort(stable=True)]
        held = torch.zeros(count, dtype=torch.bool)
        held[by_class[(2 * torch.arange(holdout) + 1) * count // (2 * holdout)]] = True
        return self._where(~held), self._where(held)

    def _where(self, mask: Tensor) -> "ImageSet":
        chosen = mask.nonzero().flatten().to(self.labels.device)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


def load(name: str, data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images of a data set.

    Args:
        name: a key of `LOADERS`, or a folder with images in `train/<class>/` and in `test/<class>/` or `val/<class>/`.
            A folder that is called like a key needs a slash: `./digits`.
        data_dir: where downloaded files and the cache of decoded folders are kept.

    Raises:
        UserError: if there is no such set, it cannot be downloaded, or its files are not as they should be.
    """
    if name in LOADERS:
        return LOADERS[name](Path(data_dir))
    folder = Path(name).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(
            f"no data set or folder {name}: choose {', '.join(LOADERS)}, "
            "or a folder with train/CLASS/ and test/CLASS/ (or val/CLASS/) full of images"
        )
    classes, files = image_folder.find(folder)
    parts = image_folder.read(folder, files, Path(data_dir) / "cache")
    return tuple(ImageSet(*parts[part], classes, flip=True) for part in ("train", "test"))


def _cifar(dataset: str, data_dir: Path) -> tuple[ImageSet, ImageSet]:
    from torchvision import datasets  # slow to import, and only used here

    source = getattr(datasets, dataset)

    def part(train: bool) -> ImageSet:
        try:
            data = source(data_dir, train=train)
        except (RuntimeError, OSError):  # a file is absent or damaged
            data = _downloaded(source, data_dir, train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, torch.tensor(data.targets), tuple(data.classes), flip=True)

    return part(train=True), part(train=False)


def _downloaded(source: type, data_dir: Path, train: bool) -> object:
    try:
        return source(data_dir, train=train, download=True)
    except Exception as error:  # of the network, the disk, a checksum, an archive: there is no common type
        raise UserError(
            f"cannot download {source.__name__} ({error}): put {source.filename} from {source.url} into {data_dir}, "
            "or name a folder with train/CLASS/ and test/CLASS/ full of images"
        ) from None


def _digits(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8 to 32 x 32; 360 of them are for testing."""
    from sklearn.datasets import load_digits  # slow to import, and only used here

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(pixels, scale_factor=4, mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).long()
    return ImageSet(images.contiguous(), labels, tuple("0123456789"), flip=False).split(360, None)


# Another set is one more entry: a function of the data directory that returns its training and test images.
LOADERS: dict[str, Callable[[Path], tuple[ImageSet, ImageSet]]] = {
    "cifar10": lambda data_dir: _cifar("CIFAR10", data_dir),
    "cifar100": lambda data_dir: _cifar("CIFAR100", data_dir),
    "digits": _digits,
}
