"""Cutout, normalization, and where images come from."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from deficient import data
from deficient.data import CutoutBatches, holes
from PIL import Image

from lab.cli import RunError, UserError
from lab.data import folder as image_folder
from lab.data.batches import Batches
from lab.data.images import ImageSet
from lab.devices import Computing
from tests.deficient.images import write_images


def image_set(count: int = 12) -> ImageSet:
    images = torch.randint(1, 256, (count, 3, 32, 32)).to(torch.uint8)
    return ImageSet(images, torch.arange(count) % 3, ("a", "b", "c"), flip=True)


def test_holes():
    mask = holes(torch.tensor([0, 16, 31]), torch.tensor([5, 16, 31]), (32, 32), 16)
    assert mask.shape == (3, 1, 32, 32)
    assert mask.sum((1, 2, 3)).tolist() == [8 * 13, 16 * 16, 9 * 9]
    rows, columns = mask[1, 0].nonzero().aminmax(dim=0)
    assert rows.tolist() == [8, 8] and columns.tolist() == [23, 23]


def test_cutout_changes_nothing_but_the_hole_and_follows_seed_and_epoch():
    images = image_set()
    plain = Batches(images, 5, train=True, seed=3)
    cut = CutoutBatches(images, 5, train=True, seed=3)
    for (expected, labels), (found, found_labels) in zip(plain.epoch(1), cut.epoch(1)):
        assert torch.equal(labels, found_labels)
        hole = (found == 0).all(1) & (expected != 0).any(1)
        assert torch.equal(found[~hole[:, None].expand_as(found)], expected[~hole[:, None].expand_as(found)])
        assert (hole.sum((1, 2)) >= 8 * 8 - 1).all() and (hole.sum((1, 2)) <= 16 * 16).all()
    again = torch.cat([batch for batch, _ in CutoutBatches(images, 5, train=True, seed=3).epoch(1)])
    assert torch.equal(torch.cat([batch for batch, _ in cut.epoch(1)]), again)
    assert not torch.equal(torch.cat([batch for batch, _ in cut.epoch(2)]), again)


def test_processes_share_the_batches_of_one():
    images = image_set()
    options = {"train": True, "seed": 1}
    whole = [batch for batch, _ in CutoutBatches(images, 5, **options).epoch(0)]
    parts = [[b for b, _ in CutoutBatches(images, 5, **options, rank=r, world_size=2).epoch(0)] for r in range(2)]
    for expected, *found in zip(whole, *parts):
        assert torch.equal(torch.cat(found), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_imagenet_is_streamed(tmp_path, workers):
    write_images(tmp_path, train=2, test=1)
    (tmp_path / "test").rename(tmp_path / "val")
    args = arguments(tmp_path, dataset="imagenet", data=None, imagenet_loc=tmp_path, workers=workers)
    train, valid, test = data.load(args, COMPUTING)
    assert test is valid and len(train) == 3 and [train.weight(batch) for batch in range(3)] == [1, 1, 1]
    torch.manual_seed(0)
    batches = list(train.epoch(3))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 224, 224)] * 2 + [(2, 3, 224, 224)]
    torch.manual_seed(0)
    for (images, labels), (again, same) in zip(batches, train.epoch(3)):
        assert torch.equal(images, again) and torch.equal(labels, same)
    assert torch.cat([labels for _, labels in valid.epoch(0)]).tolist() == list(range(5))
    (tmp_path / "val" / "e").rename(tmp_path / "val" / "f")
    with pytest.raises(UserError, match="val/f is of a class that the training images do not have"):
        data.load(args, COMPUTING)
    args.imagenet_loc = tmp_path / "nowhere"
    with pytest.raises(UserError, match="--imagenet_loc must hold"):
        data.load(args, COMPUTING)


COMPUTING = Computing(torch.device("cpu"), None, False, torch.contiguous_format)


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """Training and validation images of five classes."""
    write_images(tmp_path / "imagenet", train=2, test=1)
    (tmp_path / "imagenet" / "test").rename(tmp_path / "imagenet" / "val")
    return tmp_path / "imagenet"


def stream(folder: Path, workers: int = 0):
    args = arguments(folder, dataset="imagenet", data=None, imagenet_loc=folder, workers=workers)
    return data.load(args, COMPUTING)


def text(path):
    path.write_text("no image")
    return "9.png is not a readable image"


def truncated(path):
    whole = (path.parent / "0.png").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return "9.png is not a readable image"


def pipe(path):
    os.mkfifo(path)
    return "9.png has the name of an image but is no file"


def broken_link(path):
    path.symlink_to("nowhere")
    return "cannot read .*9.png"


def bomb(path):
    Image.new("1", (13_400, 13_400)).save(path)
    return "9.png is not a readable image: .* exceeds limit"


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("spoil", [text, truncated, pipe, broken_link, bomb])
def test_damaged_images_of_imagenet_are_named_before_training(imagenet, spoil, part):
    message = spoil(imagenet / part / "c" / "9.png")
    with pytest.raises(UserError, match=message):
        stream(imagenet)


def test_what_is_no_image_is_passed_over(imagenet):
    for name in (".0.png", "._0.png", "notes.txt"):
        (imagenet / "train" / "a" / name).write_text("no image")
    for name in ("old.png", ".hidden", "above"):
        write_images(imagenet / "train" / "a" / name, train=1)
    (imagenet / "train" / "a" / "loop.png").symlink_to("..", target_is_directory=True)
    (imagenet / "train" / ".ipynb_checkpoints").mkdir()
    train, valid, _ = stream(imagenet)
    assert len(train.data) == 10 and len(valid.data) == 5 and train.data.classes == tuple("abcde")


def test_images_are_checked_once(imagenet, monkeypatch):
    stream(imagenet)
    checked, original = [], image_folder.decode
    monkeypatch.setattr(image_folder, "decode", lambda file, **options: checked.append(file) or original(file))
    stream(imagenet)
    assert not checked
    os.utime(imagenet / "val" / "a" / "0.png", (1, 1))
    stream(imagenet, workers=2)
    assert len(checked) == 15


def test_a_file_in_place_of_the_folder_and_too_many_workers(imagenet, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", Path("x" * 5000)):
        with pytest.raises(UserError, match="--imagenet_loc must hold"):
            stream(path)
    with pytest.raises(UserError, match="--workers 100000: more than"):
        stream(imagenet, workers=100_000)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_during_training(imagenet, workers):
    train, _, _ = stream(imagenet, workers)
    (imagenet / "train" / "c" / "1.png").unlink()
    with pytest.raises(RunError) as error:
        list(train.epoch(0))
    missing = imagenet / "train" / "c" / "1.png"
    assert str(error.value) == f"images cannot be loaded any more: cannot read {missing}: No such file or directory"


def arguments(folder: Path, **changes) -> argparse.Namespace:
    defaults = {
        "dataset": "cifar10", "data": str(folder), "data_dir": folder.parent, "holdout": 0, "seed": 0, "batch_size": 4,
        "network": "WideResNet", "channels_last": False,
    }  # fmt: skip
    return argparse.Namespace(**{**defaults, **changes})


@pytest.mark.parametrize(
    ("dataset", "network", "cutout", "mean"),
    [
        ("cifar10", "WideResNet", True, 0.4914),
        ("cifar10", "DARTS", True, 0.49139968),
        ("cifar100", "WideResNet", False, 0.5071),
        ("digits", "WideResNet", True, 0.4914),
    ],
)
def test_augmentation_by_set(tmp_path, dataset, network, cutout, mean):
    folder = write_images(tmp_path / "images")
    train, valid, test = data.load(arguments(folder, dataset=dataset, network=network, holdout=5), COMPUTING)
    assert isinstance(train, CutoutBatches) is cutout
    assert [len(part.data) for part in (train, valid, test)] == [25, 5, 10]
    std = {"cifar100": 0.2009}.get(dataset, 0.24703233 if network == "DARTS" else 0.2023)
    images, _ = next(test.epoch(0))
    assert images[0, 0, 0, 0].item() == pytest.approx(
        (test.data.images[0, 0, 0, 0].item() / 255 - mean) / std, abs=1e-5
    )
