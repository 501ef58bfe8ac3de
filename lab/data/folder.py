"""Folders with one folder of images per class: found, checked, decoded once, and kept decoded in a cache."""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy
import torch
from torch import Tensor

from .. import checkpoint
from ..cli import UserError
from ..devices import Computing
from ..record import progress
from .decoding import RULE, SUFFIXES, decode

# The image files of each part ("train", "test") with the class of each, as a position in the list of classes.
Files = dict[str, list[tuple[str, int]]]


def find(
    folder: Path, train: tuple[str, ...] = ("train",), tests: tuple[str, ...] = ("test", "val")
) -> tuple[tuple[str, ...], Files]:
    """Return the classes in `folder`, an absolute path, sorted, and the image files of its parts `train` and `test`.

    Classes are the folders of the first of `train`; their images may be one level further down in a folder `images`, as
    in Tiny ImageNet. The classes in the first folder that there is of `tests` are among them. Where `val` has no
    folders of classes but `images` and `val_annotations.txt`, as Tiny ImageNet comes, it is taken, for `test` has no
    classes there. Hidden files, files that are no images by their name, and all other folders are passed over, so that
    a link to a folder above makes no images be there twice. Nothing but a regular file is ever opened.

    Args:
        train: folders of training images, which are joined.

    Raises:
        UserError: if a part, the images of a class, or the class of a test image in `train` are missing; if what has
            the name of an image is no regular file.
    """
    parts, val = [folder / name for name in train], folder / "val"
    annotations = val / "val_annotations.txt"
    try:
        is_annotated = annotations.is_file() and not any(e.is_dir() and e.name != "images" for e in val.iterdir())
        there = (folder / name for name in tests if (folder / name).is_dir())
        test = val if is_annotated else next(there, folder / tests[-1])
        for part in (*parts, test):
            if not part.is_dir():
                wanted = f"{', '.join(train)}, and {' or '.join(tests)}"
                raise UserError(f"{folder} must have a folder {wanted}, with a folder of images for each class")
        classes = class_names(parts[0])
        places = {name: position for position, name in enumerate(classes)}
        evaluated = _annotated(annotations, places) if is_annotated else _images(test, places)
        return classes, {"train": [image for part in parts for image in _images(part, places)], "test": evaluated}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None


def check(folder: Path, files: Files, cache: Path, computing: Computing, threads: int) -> None:
    """Find out whether all files can be decoded, which takes a fraction of the time of decoding them.

    A note in `cache` spares the same files another check. Each of several processes checks a share of them.

    Raises:
        UserError: if one is no readable image.
    """
    kept_at, fingerprint = _cache(folder, cache, ".checked"), _fingerprint(files)
    if computing.on_main(lambda: _note(kept_at) == fingerprint):
        return
    share = [file for part in files.values() for file, _ in part][computing.rank :: computing.world_size]

    def decode_all() -> None:
        with ThreadPool(threads) as pool:  # decoders let other threads run
            checked = pool.imap_unordered(lambda file: decode(file, draft=True) and None, share, chunksize=16)
            for _ in progress(checked, len(share), "checking images", computing.is_main):
                pass

    computing.on_all(decode_all)
    if computing.is_main:
        _keep(folder, cache, lambda: checkpoint.save_json(kept_at, fingerprint))


def read(folder: Path, files: Files, cache: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (images, 3, height, width) in uint8 and labels (images,) of each part.

    The decoded images are kept in a file in `cache`, as long as paths, sizes and times of change of all files stay the
    same. A cache that cannot be read is made anew; one that cannot be written costs a note on standard error.

    Raises:
        UserError: if a file is not a readable image, if images differ in size, or all do not fit into memory.
    """
    kept_at, fingerprint = _cache(folder, cache, ".pt"), _fingerprint(files)
    parts = _kept(kept_at, fingerprint, files)
    if parts is None:
        parts = _decode(files)
        _keep(folder, cache, lambda: checkpoint.save(kept_at, {"fingerprint": fingerprint, "parts": parts}))
    return parts


def class_names(part: Path) -> tuple[str, ...]:
    """Return the names of the folders in `part`, sorted, but hidden ones.

    Raises:
        UserError: if there is none.
    """
    names = sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{part} has no folders; it must have one, full of images, for each class")
    return tuple(names)


def _images(part: Path, places: dict[str, int]) -> list[tuple[str, int]]:
    found = []
    for name in class_names(part):
        if name not in places:
            raise UserError(f"{part / name} is of a class that the training images do not have")
        folder = part / name / "images" if (part / name / "images").is_dir() else part / name
        with os.scandir(folder) as entries:
            images = sorted(entry.path for entry in entries if _is_image(entry))
        if not images:
            raise UserError(f"{folder} has no images ({', '.join(SUFFIXES)})")
        found += [(image, places[name]) for image in images]
    return found


def _is_image(entry: os.DirEntry) -> bool:
    if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES) or entry.is_dir():
        return False
    if not entry.is_file():
        entry.stat()  # says what is wrong with a link
        raise UserError(f"{entry.path} has the name of an image but is no file (a pipe, socket or device); remove it")
    return True


def _annotated(annotations: Path, places: dict[str, int]) -> list[tuple[str, int]]:
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
        found.append((str(image), places[label]))
    if not found:
        raise UserError(f"{annotations} is empty; unpack the archive again")
    return sorted(found)


def _fingerprint(files: Files) -> str:
    digest = hashlib.sha256(b"%d\n" % RULE)
    for images in files.values():
        for image, label in images:
            try:
                status = os.stat(image)
            except OSError as error:
                raise UserError(f"cannot read {image}: {error.strerror}") from None
            digest.update(b"%s\0%d %d %d\n" % (os.fsencode(image), label, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _cache(folder: Path, cache: Path, suffix: str) -> Path:
    return cache / f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}{suffix}"


def _keep(folder: Path, cache: Path, write: Callable[[], None]) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        print(f"note: what was decoded of {folder} is not kept in {cache}: {error}", file=sys.stderr)


def _note(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except Exception:  # absent, or damaged
        return None


def _kept(path: Path, fingerprint: str, files: Files) -> dict[str, tuple[Tensor, Tensor]] | None:
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():  # torch.load does not compare the checksums
                return None
        kept = torch.load(path, weights_only=True)
        if not isinstance(kept, dict) or kept["fingerprint"] != fingerprint:
            return None
        for part, found in files.items():
            images, labels = kept["parts"][part]
            is_whole = images.dtype == torch.uint8 and images.dim() == 4 and images.shape[:2] == (len(found), 3)
            if not is_whole or labels.tolist() != [label for _, label in found]:
                return None
        return kept["parts"]
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


def _pixels(files: list[str], example: str, label: str) -> numpy.ndarray:
    """Return the images (images, 3, height, width) in uint8; all must have the size of `example`."""
    width, height = decode(example).size
    try:
        pixels = numpy.empty((len(files), 3, height, width), numpy.uint8)
    except MemoryError:
        raise UserError(f"{len(files)} images of {width} x {height} pixels do not fit into memory") from None
    # In this thread: small images take longer to pass between threads than to decode (measured: half the rate).
    for position, file in enumerate(progress(files, len(files), label, is_main=True)):
        image = decode(file)
        if image.size != (width, height):
            raise UserError(
                f"images must have one size: {file} is {image.width} x {image.height}, {example} is {width} x {height}"
            )
        pixels[position] = numpy.asarray(image).transpose(2, 0, 1)
    return pixels
