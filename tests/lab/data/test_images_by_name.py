"""Tiny ImageNet and CINIC-10 in the layout of their archives, in memory as they are on disk."""

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from lab.cli import UserError
from lab.data import images
from lab.data.images import load
from tests.lab.images import SAMPLE, write_image


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.relative_to(folder).parts}


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Two classes with boxes beside the images, three validation images in one folder."""
    root = tmp_path / "tiny-imagenet-200"
    for place, name in enumerate(("n01", "n02")):
        for number in range(2):
            write_image(root / "train" / name / "images" / f"{name}_{number}.JPEG", (100 * place, number, 0))
        (root / "train" / name / f"{name}_boxes.txt").write_text("boxes")
    for number in range(3):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", (0, 0, 80 * number))
    lines = [f"val_{number}.JPEG\t{name}\t0\t0\t9\t9\n" for number, name in ((2, "n01"), (0, "n02"), (1, "n01"))]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(root / "test" / "images" / "test_0.JPEG")  # of no known class
    return root


@pytest.mark.parametrize("name", ["tiny-imagenet-200", "tiny_imagenet"])
def test_tiny_imagenet_is_sorted_in_memory(tiny, tmp_path, name):
    tiny.rename(tmp_path / name)
    before = files_in(tmp_path)
    train, test = load("tiny_imagenet", tmp_path)
    assert files_in(tmp_path) == before
    assert train.classes == test.classes == ("n01", "n02")
    assert train.labels.tolist() == [0, 0, 1, 1] and train.flip
    assert test.labels.tolist() == [1, 0, 0]
    assert [round(image[2].float().mean().item() / 80) for image in test.images] == [0, 1, 2]


@pytest.mark.parametrize("annotations", [True, False])
def test_tiny_imagenet_as_any_folder_and_with_sorted_validation_images(tiny, tmp_path, annotations):
    """Programs that sort them may leave the annotations where they were."""
    shutil.rmtree(tiny / "test")
    if not annotations:
        (tiny / "val" / "val_annotations.txt").unlink()
    for number, name in ((0, "n02"), (1, "n01"), (2, "n01")):
        (tiny / "val" / name / "images").mkdir(parents=True, exist_ok=True)
        shutil.move(tiny / "val" / "images" / f"val_{number}.JPEG", tiny / "val" / name / "images")
    (tiny / "val" / "images").rmdir()
    _, test = load(str(tiny), tmp_path)
    assert test.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_0.JPEG\tn03\t0\t0\t9\t9", "line 1: no training images are of class 'n03'"),
        ("val_9.JPEG\tn01\t0\t0\t9\t9", "line 1: there is no .*val_9.JPEG"),
        ("nonsense", "line 1: no training images are of class ''"),
        ("", "is empty"),
    ],
)
def test_wrong_annotations(tiny, tmp_path, line, message):
    (tiny / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(UserError, match=message):
        load("tiny_imagenet", tmp_path)


def test_a_downloaded_archive_is_checked_and_unpacked(tiny, tmp_path, monkeypatch):
    """A finished download is taken if its checksum is right; otherwise it is fetched again, and a failure is a line."""
    home = tmp_path / "home"
    home.mkdir()
    archive = Path(shutil.make_archive(str(home / "archive"), "zip", tmp_path, tiny.name))
    checksum = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(images, "TINY_IMAGENET", ("http://127.0.0.1:9/archive.zip", "0" * 32))
    with pytest.raises(UserError, match="cannot download .*: unpack it in .*home, as tiny-imagenet-200"):
        load("tiny_imagenet", home)
    assert not (home / "tiny-imagenet-200").exists()
    monkeypatch.setattr(images, "TINY_IMAGENET", ("http://127.0.0.1:9/archive.zip", checksum))
    _, test = load("tiny_imagenet", home)
    assert len(test) == 3
    assert not list(home.glob(".*"))


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs ../shared/data/tiny-imagenet-sample.zip")
def test_tiny_imagenet_sample(tmp_path):
    with zipfile.ZipFile(SAMPLE) as archive:
        archive.extractall(tmp_path)
        lines = archive.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines()
    train, test = load("tiny_imagenet", tmp_path)
    assert train.images.shape[1:] == (3, 64, 64)
    assert len(train.classes) == len(set(train.labels.tolist())) == 10
    assert len(test) == len(lines)
    wanted = sorted(line.split("\t")[:2] for line in lines)
    assert [test.classes[label] for label in test.labels] == [name for _, name in wanted]


@pytest.mark.parametrize("parts", [("train", "valid"), ("trainval",)])
def test_cinic10_joins_training_and_validation(tmp_path, parts):
    for part in (*parts, "test"):
        for place, name in enumerate(("cat", "dog")):
            write_image(tmp_path / "cinic-10" / part / name / f"{part}.png", (place, 0, 0))
    train, test = load("cinic-10", tmp_path)
    assert train.labels.tolist() == [0, 1] * len(parts)
    assert torch.equal(train.images[:, 0, 0, 0].long(), train.labels)
    assert test.labels.tolist() == [0, 1]


def test_cinic10_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match="unpack CINIC-10.tar.gz from https://.* there"):
        load("cinic-10", tmp_path)
