"""Image sets held in memory as uint8 tensors, and where they come from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..cli import UserError
from . import folder as image_folder

TINY_IMAGENET = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")  # URL, MD5


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their classes."""

    images: Tensor
    """The pixels, uint8, shape (images, 3, height, width)."""
    labels: Tensor
    """The images' positions in `classes`, int64, shape (images,)."""
    classes: tuple[str, ...]
    flip: bool
    """Whether a mirrored image keeps its class."""

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
    return _from_files(folder, Path(data_dir))


def _from_files(folder: Path, data_dir: Path, train: tuple[str, ...] = ("train",)) -> tuple[ImageSet, ImageSet]:
    classes, files = image_folder.find(folder, train)
    parts = image_folder.read(folder, files, data_dir / "cache")
    return ImageSet(*parts["train"], classes, flip=True), ImageSet(*parts["test"], classes, flip=True)


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


def _downloaded(source: Any, data_dir: Path, train: bool) -> Any:
    from torchvision.datasets.utils import check_integrity

    unpacked = data_dir / source.base_folder
    checksums = {data_dir / source.filename: source.tgz_md5, unpacked / source.meta["filename"]: source.meta["md5"]}
    checksums |= {unpacked / name: md5 for name, md5 in (*source.train_list, *source.test_list)}
    damaged = [path for path, md5 in checksums.items() if path.exists() and not check_integrity(path, md5)]
    try:
        return source(data_dir, train=train, download=True)
    except Exception as error:  # of the network, the disk, a checksum, an archive: there is no common type
        wrong = f"cannot download {source.__name__} ({error})"
        if damaged:
            wrong = f"{damaged[0]} is damaged, its checksum is not {checksums[damaged[0]]}, and {wrong}"
        raise UserError(
            f"{wrong}: put {source.filename} from {source.url} into {data_dir}, "
            "or name a folder with train/CLASS/ and test/CLASS/ full of images"
        ) from None


def _tiny_imagenet(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return Tiny ImageNet: 64 x 64 pixels, 200 classes of 500 images, 50 of each for testing, where it is unpacked."""
    folders = [data_dir / name for name in ("tiny_imagenet", "tiny-imagenet-200")]
    folder = next((folder for folder in folders if folder.is_dir()), None) or _unpacked(TINY_IMAGENET, folders[1])
    return _from_files(folder.resolve(), data_dir)


def _unpacked(source: tuple[str, str], folder: Path) -> Path:
    """Download the archive at `source` (URL, MD5) and unpack its `folder`, all or not at all; return that."""
    from torchvision.datasets.utils import download_and_extract_archive  # slow to import, and only used here

    url, md5 = source
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        download_and_extract_archive(url, folder.parent, partial, md5=md5)
        (partial / folder.name).rename(folder)
        partial.rmdir()
    except Exception as error:  # of the network, the disk, a checksum, an archive: there is no common type
        raise UserError(f"cannot download {url} ({error}): unpack it in {folder.parent}, as {folder.name}") from None
    return folder


def _cinic10(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return CINIC-10: 32 x 32 pixels, 10 classes; its training and validation images are joined."""
    folder = (data_dir / "cinic-10").resolve()
    if not folder.is_dir():
        raise UserError(f"no {folder}: unpack CINIC-10.tar.gz from https://datashare.ed.ac.uk/handle/10283/3192 there")
    return _from_files(folder, data_dir, ("trainval",) if (folder / "trainval").is_dir() else ("train", "valid"))


def _digits(scale: int) -> tuple[ImageSet, ImageSet]:
    """Return scikit-learn's 1,797 handwritten digits, `scale` times as large as 8 x 8; 360 of them are for testing."""
    from sklearn.datasets import load_digits  # slow to import, and only used here

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(pixels, scale_factor=scale, mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).long()
    return ImageSet(images.contiguous(), labels, tuple("0123456789"), flip=False).split(360, None)


# Another set is one more entry: a function of the data directory that returns its training and test images.
LOADERS: dict[str, Callable[[Path], tuple[ImageSet, ImageSet]]] = {
    "cifar10": lambda data_dir: _cifar("CIFAR10", data_dir),
    "cifar100": lambda data_dir: _cifar("CIFAR100", data_dir),
    "cinic-10": _cinic10,
    "tiny_imagenet": _tiny_imagenet,
    "digits": lambda data_dir: _digits(4),
    "digits16": lambda data_dir: _digits(2),
}
