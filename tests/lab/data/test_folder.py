"""Folders of images, good and bad, and the cache of what was decoded."""

import io
import os
import re
import tarfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from lab import checkpoint
from lab.cli import UserError
from lab.data import folder as image_folder
from lab.data.batches import Batches
from lab.data.images import load
from tests.harness import REPOSITORY
from tests.lab.images import whole_epoch, write_image

ARCHIVE = REPOSITORY.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, two training images and one test image each."""
    for position, name in enumerate(("bee", "ant")):
        for file in ("train/{}/0.png", "train/{}/1.PNG", "test/{}/0.png"):
            write_image(tmp_path / "set" / file.format(name), (position, 100 + position, 200))
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The files decoded so far."""
    files, original = [], image_folder.decode
    monkeypatch.setattr(image_folder, "decode", lambda file: files.append(file) or original(file))
    return files


def test_folder(folder, tmp_path):
    train, test = load(str(folder), tmp_path / "data")
    assert train.classes == test.classes == ("ant", "bee") and train.flip
    assert train.images.shape == (4, 3, 4, 4) and train.images.dtype == torch.uint8
    assert train.labels.tolist() == [0, 0, 1, 1] and test.labels.tolist() == [0, 1]
    assert train.labels.dtype == torch.int64
    assert train.images[:, :, 0, 0].tolist() == [[1, 101, 200]] * 2 + [[0, 100, 200]] * 2


def test_folder_of_all_kinds_of_files(tmp_path):
    for name in ("0.jpg", "1.JPEG", "2.png", "3.bmp", "4.webp", "5.ppm"):
        write_image(tmp_path / "train/gray" / name, (90, 90, 90))
    write_image(tmp_path / "train/gray/6.png", (90, 90, 90), mode="L")
    write_image(tmp_path / "train/gray/7.png", (90, 90, 90), mode="RGBA")
    write_image(tmp_path / "train/gray/.hidden.png", size=9)
    (tmp_path / "train/gray/Thumbs.db").write_text("no image")
    (tmp_path / "train/.git").mkdir()
    write_image(tmp_path / "val/gray/0.jpg", (90, 90, 90))
    train, test = load(str(tmp_path), tmp_path / "data")
    assert len(train) == 8 and len(test) == 1
    assert (train.images.int() - 90).abs().max() <= 2  # JPEG and WebP lose a little


def test_test_folder_may_lack_classes(folder, tmp_path):
    os.remove(folder / "test/ant/0.png")
    os.rmdir(folder / "test/ant")
    train, test = load(str(folder), tmp_path)
    assert test.classes == ("ant", "bee") and test.labels.tolist() == [1]


def spoil_corrupt(folder):
    (folder / "train/bee/0.png").write_bytes(b"no image")
    return "bee/0.png is not a readable image"


def spoil_truncated(folder):
    file = folder / "train/bee/0.png"
    file.write_bytes(file.read_bytes()[:45])  # signature and header, which are enough to open it
    return "bee/0.png is not a readable image"


def spoil_size(folder):
    write_image(folder / "test/bee/0.png", size=5)
    return "bee/0.png is 5 x 5, .*ant/0.png is 4 x 4"


def spoil_empty_class(folder):
    (folder / "train/cow").mkdir()
    return "cow has no images"


def spoil_unknown_class(folder):
    write_image(folder / "test/cow/0.png")
    return "cow is of a class that the training images do not have"


def spoil_no_test(folder):
    (folder / "test").rename(folder / "other")
    return "must have a folder train, and test or val"


def spoil_no_classes(folder):
    (folder / "train").rename(folder / "other")
    (folder / "train").mkdir()
    return "train has no folders"


def spoil_empty(folder):
    (folder / "train/bee/0.png").write_bytes(b"")
    return "bee/0.png is not a readable image: it is empty"


def spoil_bomb(folder):
    Image.new("1", (13_400, 13_400)).save(folder / "train/bee/0.png")
    return "bee/0.png is not a readable image: .* exceeds limit"


def spoil_link(folder):
    (folder / "train/bee/2.png").symlink_to(folder / "nowhere.png")
    return "cannot read .*2.png"


def spoil_link_to_itself(folder):
    (folder / "train/bee/2.png").symlink_to("2.png")
    return "cannot read .*2.png: .*symbolic links"


def spoil_pipe(folder):
    os.mkfifo(folder / "train/bee/2.png")
    return "bee/2.png has the name of an image but is no file"


def spoil_device(folder):
    (folder / "train/bee/2.png").symlink_to("/dev/zero")
    return "bee/2.png has the name of an image but is no file"


def spoil_nested(folder):
    (folder / "train/bee").rename(folder / "train/inner")
    (folder / "train/bee").mkdir()
    (folder / "train/inner").rename(folder / "train/bee/inner")
    return "bee has no images"


SPOILS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILS)
def test_bad_folder_is_named(folder, tmp_path, spoil):
    with pytest.raises(UserError, match=spoil(folder)):
        load(str(folder), tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.pt"))


def test_folders_and_links_in_a_folder_of_images_are_passed_over(folder, tmp_path):
    write_image(folder / "train/bee/old.png/0.png")
    (folder / "train/bee/above.png").symlink_to(folder / "train", target_is_directory=True)
    (folder / "train/bee/around").symlink_to(".", target_is_directory=True)
    (folder / "train/bee/2.png").symlink_to("0.png")  # a link to an image is one
    train, _ = load(str(folder), tmp_path / "data")
    assert train.labels.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs ../shared/data/cifar10-jpeg.tar.xz")
def test_real_cifar_images(tmp_path):
    pixels = []
    with tarfile.open(ARCHIVE) as archive:
        for position, member in enumerate(member for member in archive if member.isfile()):
            if position == 200:
                break
            content = archive.extractfile(member).read()
            part = "test" if position % 4 == 3 else "train"
            target = tmp_path / "cifar" / part / Path(member.name).parent.name / Path(member.name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            if part == "test":
                pixels.append(numpy.asarray(Image.open(io.BytesIO(content))))
    train, test = load(str(tmp_path / "cifar"), tmp_path / "data")
    assert train.images.shape == (150, 3, 32, 32) and test.images.shape == (50, 3, 32, 32)
    assert numpy.array_equal(test.images.permute(0, 2, 3, 1), numpy.stack(pixels))
    images, _ = whole_epoch(Batches(train, 128, train=True))
    assert images.shape == train.images.shape and images.isfinite().all()


# The cache


def test_second_load_decodes_nothing(folder, tmp_path, decoded):
    first = load(str(folder), tmp_path / "data")
    assert decoded
    decoded.clear()
    second = load(str(folder), tmp_path / "data")
    assert not decoded
    for a, b in zip(first, second):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.classes == b.classes
    (cached,) = (tmp_path / "data/cache").iterdir()
    assert re.fullmatch(r"set-[0-9a-f]{8}\.pt", cached.name)


def test_relative_and_absolute_paths_share_a_cache(folder, tmp_path, decoded, monkeypatch):
    load(str(folder), tmp_path / "data")
    decoded.clear()
    monkeypatch.chdir(folder)
    load(".", tmp_path / "data")
    assert not decoded


def change_touch(folder):
    os.utime(folder / "train/bee/0.png", (1, 1))


def change_rename(folder):
    (folder / "train/bee/0.png").rename(folder / "train/bee/2.png")


def change_rename_class(folder):
    (folder / "train/bee").rename(folder / "train/ape")
    (folder / "test/bee").rename(folder / "test/ape")


def change_add(folder):
    write_image(folder / "train/bee/2.png")


def change_remove(folder):
    os.remove(folder / "train/bee/0.png")


def change_content(folder):
    write_image(folder / "test/bee/0.png", (1, 2, 3))


CHANGES = [value for name, value in sorted(globals().items()) if name.startswith("change_")]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_folder_is_decoded_again(folder, tmp_path, decoded, change):
    load(str(folder), tmp_path / "data")
    change(folder)
    decoded.clear()
    cached, fresh = load(str(folder), tmp_path / "data"), load(str(folder), tmp_path / "elsewhere")
    assert decoded
    for a, b in zip(cached, fresh):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.classes == b.classes
    assert len(list((tmp_path / "data/cache").iterdir())) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"something else",
        lambda content: content.replace(bytes([1, 1, 1, 1]), bytes([1, 1, 9, 1])),
    ],
    ids=["empty", "truncated", "foreign", "a pixel differs"],
)
def test_damaged_cache_is_rebuilt(folder, tmp_path, decoded, spoil):
    first = load(str(folder), tmp_path / "data")
    (cached,) = (tmp_path / "data/cache").iterdir()
    good = cached.read_bytes()
    cached.write_bytes(spoil(good))
    assert cached.read_bytes() != good
    decoded.clear()
    second = load(str(folder), tmp_path / "data")
    assert decoded and torch.equal(first[0].images, second[0].images)
    decoded.clear()
    load(str(folder), tmp_path / "data")
    assert not decoded


def test_cache_with_other_content_is_rebuilt(folder, tmp_path, decoded):
    first = load(str(folder), tmp_path / "data")
    (cached,) = (tmp_path / "data/cache").iterdir()
    for content in ([1, 2], {"parts": {}}, torch.zeros(2)):
        checkpoint.save(cached, content)
        assert torch.equal(load(str(folder), tmp_path / "data")[0].images, first[0].images)


def test_images_decoded_by_another_rule_are_decoded_again(folder, tmp_path, decoded, monkeypatch):
    load(str(folder), tmp_path / "data")
    decoded.clear()
    monkeypatch.setattr(image_folder, "RULE", image_folder.RULE + 1)
    load(str(folder), tmp_path / "data")
    assert decoded


def cached_parts(train: int = 4, dtype: torch.dtype = torch.uint8, labels: tuple[int, ...] = (0, 0, 1, 1)) -> dict:
    images = {"train": torch.zeros(train, 3, 4, 4, dtype=dtype), "test": torch.zeros(2, 3, 4, 4, dtype=dtype)}
    classes = {"train": torch.tensor(labels[:train]), "test": torch.tensor([0, 1])}
    return {part: (images[part], classes[part]) for part in images}


@pytest.mark.parametrize(
    "parts",
    [
        {"train": cached_parts()["train"]},
        {**cached_parts(), "test": None},
        cached_parts(train=3),
        cached_parts(dtype=torch.float32),
        cached_parts(labels=(0, 0, 0, 1)),
    ],
    ids=["no test", "nothing in test", "too few", "floats", "other labels"],
)
def test_cache_that_is_whole_but_wrong_is_rebuilt(folder, tmp_path, parts):
    first = load(str(folder), tmp_path / "data")
    (cached,) = (tmp_path / "data/cache").iterdir()
    checkpoint.save(cached, {"fingerprint": torch.load(cached, weights_only=True)["fingerprint"], "parts": parts})
    assert torch.equal(load(str(folder), tmp_path / "data")[0].images, first[0].images)


def test_interrupted_write_leaves_no_file(folder, tmp_path, monkeypatch):
    def interrupted(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(str(folder), tmp_path / "data")
    assert not list((tmp_path / "data/cache").iterdir())
    load(str(folder), tmp_path / "data")


def test_unwritable_cache_costs_a_note(folder, tmp_path, capsys):
    (tmp_path / "data").write_text("a file where the folder should be")
    train, _ = load(str(folder), tmp_path / "data")
    assert len(train) == 4
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "not kept in" in captured.err
    assert not captured.out


def test_loading_a_folder_says_nothing(folder, tmp_path, capsys):
    load(str(folder), tmp_path / "data")
    assert capsys.readouterr() == ("", "")
