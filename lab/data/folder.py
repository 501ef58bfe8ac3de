"""Folders with one folder of images per class: found, decoded once, and kept decoded in a cache."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from .. import checkpoint
from ..cli import UserError
from ..record import progress

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")

# The image files of each part ("train", "test") with the class of each, as a position in the list of classes.
Files = dict[str, list[tuple[Path, int]]]


def find(folder: Path, train: tuple[str, ...] = ("train",)) -> tuple[tuple[str, ...], Files]:
    """Return the classes in `folder`, an absolute path, sorted, and the image files of its parts `train` and `test`.

    Classes are the folders of the first of `train`; their images may be one level further down in a folder `images`, as
    in Tiny ImageNet. The classes in `test`, or `val` if there is no `test`, are among them. Where `val` has no folders
    of classes but `images` and `val_annotations.txt`, as Tiny ImageNet comes, it is taken, for `test` has no classes
    there. Hidden files and files that are no images by their name are passed over.

    Args:
        train: folders of training images, which are joined.

    Raises:
        UserError: if a part, the images of a class, or the class of a test image in `train` are missing.
    """
    parts, test, val = [folder / name for name in train], folder / "test", folder / "val"
    annotations = val / "val_annotations.txt"
    try:
        is_annotated = annotations.is_file() and not any(e.is_dir() and e.name != "images" for e in val.iterdir())
        if is_annotated or not test.is_dir():
            test = val
        for part in (*parts, test):
            if not part.is_dir():
                wanted = ", ".join(train)
                raise UserError(
                    f"{folder} must have a folder {wanted}, and test or val, with a folder of images for each class"
                )
        classes = tuple(_folders(parts[0]))
        places = {name: position for position, name in enumerate(classes)}
        tests = _annotated(annotations, places) if is_annotated else _images(test, places)
        return classes, {"train": [image for part in parts for image in _images(part, places)], "test": tests}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None


def read(folder: Path, files: Files, cache: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (images, 3, height, width) in uint8 and labels (images,) of each part.

    The decoded images are kept in a file in `cache`, as long as paths, sizes and times of change of all files stay the
    same. A cache that cannot be read is made anew; one that cannot be written costs a note on standard error.

    Raises:
        UserError: if a file is not a readable image, if images differ in size, or all do not fit into memory.
    """
    kept_at = cache / f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}.pt"
    fingerprint = _fingerprint(files)
    parts = _kept(kept_at, fingerprint)
    if parts is None:
        parts = _decode(files)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            checkpoint.save(kept_at, {"fingerprint": fingerprint, "parts": parts})
        except OSError as error:
            print(f"note: the decoded images of {folder} are not kept in {cache}: {error}", file=sys.stderr)
    return parts


def _folders(part: Path) -> list[str]:
    names = sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{part} has no folders; it must have one, full of images, for each class")
    return names


def _images(part: Path, places: dict[str, int]) -> list[tuple[Path, int]]:
    found = []
    for name in _folders(part):
        if name not in places:
            raise UserError(f"{part / name} is of a class that the training images do not have")
        folder = part / name / "images" if (part / name / "images").is_dir() else part / name
        images = sorted(e for e in folder.iterdir() if e.suffix.lower() in SUFFIXES and not e.name.startswith("."))
        if not images:
            raise UserError(f"{part / name} has no images ({', '.join(SUFFIXES)})")
        found += [(image, places[name]) for image in images]
    return found


def _annotated(annotations: Path, places: dict[str, int]) -> list[tuple[Path, int]]:
    """Return the images in the folder `images` beside `annotations`, whose lines begin with file name, tab, class."""
    found = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        image = annotations.parent / "images" / Path(name).name
        if label not in places:
            raise UserError(f"{annotations}, line {number}: no training images are of class {label!r}")
        if not image.is_file():
            raise UserError(f"{annotations}, line {number}: there is no {image}; unpack the archive again")
        found.append((image, places[label]))
    if not found:
        raise UserError(f"{annotations} is empty; unpack the archive again")
    return sorted(found)


def _fingerprint(files: Files) -> str:
    digest = hashlib.sha256()
    for images in files.values():
        for image, label in images:
            try:
                status = image.stat()
            except OSError as error:
                raise UserError(f"cannot read {image}: {error.strerror}") from None
            digest.update(b"%s\0%d %d %d\n" % (os.fsencode(image), label, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _kept(path: Path, fingerprint: str) -> dict[str, tuple[Tensor, Tensor]] | None:
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():  # torch.load does not compare the checksums
                return None
        kept = torch.load(path, weights_only=True)
        return kept["parts"] if isinstance(kept, dict) and kept["fingerprint"] == fingerprint else None
    except Exception:  # absent, damaged in one of many ways, or of another origin: it is made anew
        return None


def _decode(files: Files) -> dict[str, tuple[Tensor, Tensor]]:
    (example, _), *_ = files["train"]
    return {
        part: (
            torch.from_numpy(_pixels([image for image, _ in images], example, f"decoding {part}")),
            torch.tensor([label for _, label in images]),
        )
        for part, images in files.items()
    }


def _pixels(files: list[Path], example: Path, label: str) -> numpy.ndarray:
    """Return the images (images, 3, height, width) in uint8; all must have the size of `example`."""
    height, width, _ = _image(example).shape
    try:
        pixels = numpy.empty((len(files), 3, height, width), numpy.uint8)
    except MemoryError:
        raise UserError(f"{len(files)} images of {width} x {height} pixels do not fit into memory") from None
    # In this thread: small images take longer to pass between threads than to decode (measured: half the rate).
    for position, file in enumerate(progress(files, len(files), label, is_main=True)):
        image = _image(file)
        if image.shape != (height, width, 3):
            raise UserError(
                f"images must have one size: {file} is {image.shape[1]} x {image.shape[0]}, "
                f"{example} is {width} x {height}"
            )
        pixels[position] = image.transpose(2, 0, 1)
    return pixels


def _image(file: Path) -> numpy.ndarray:
    """Return an RGB image (height, width, 3)."""
    try:
        with Image.open(file) as image:
            return numpy.asarray(image.convert("RGB"))
    except Exception as error:  # the decoders raise many types for a damaged file
        raise UserError(f"{file} is not a readable image ({error})") from None
