"""Image sets, and those known by name."""

import re

import numpy
import pytest
import torch
from torchvision import datasets

from lab.cli import UserError
from lab.data.images import LOADERS, load
from tests.lab.images import image_set


def test_length_and_device():
    data = image_set(12)
    assert len(data) == 12
    moved = data.to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert (moved.classes, moved.flip) == (data.classes, data.flip)


@pytest.mark.parametrize("holdout", [1, 7, 20, 49])
@pytest.mark.parametrize("seed", [None, 3])
def test_split_keeps_every_image_once_and_the_shares_of_classes(holdout, seed):
    data = image_set(50)
    data.labels.copy_(torch.repeat_interleave(torch.arange(5), torch.tensor([20, 15, 10, 4, 1])))
    rest, held = data.split(holdout, None if seed is None else torch.Generator().manual_seed(seed))
    assert (len(rest), len(held)) == (50 - holdout, holdout)
    firsts = torch.cat([rest.images, held.images])[:, 0, 0, 0].long()
    assert sorted(firsts.tolist()) == sorted(data.images[:, 0, 0, 0].tolist())
    assert torch.equal(torch.cat([rest.labels, held.labels]), data.labels[firsts - 1])
    expected = data.labels.bincount() * holdout / 50
    assert (held.labels.bincount(minlength=5) - expected).abs().max() <= 1


def test_split_follows_the_generator():
    data = image_set(50)

    def held(seed):
        return data.split(10, torch.Generator().manual_seed(seed))[1].images

    assert torch.equal(held(1), held(1))
    assert not torch.equal(held(1), held(2))


@pytest.mark.parametrize("holdout", [0, 50, 51])
def test_split_into_nothing_is_refused(holdout):
    with pytest.raises(UserError, match=f"hold out {holdout} of 50"):
        image_set(50).split(holdout, None)


def test_digits(tmp_path):
    train, test = load("digits", tmp_path)
    assert (len(train), len(test)) == (1437, 360)
    assert train.classes == tuple("0123456789") and not train.flip
    assert train.images.shape == (1437, 3, 32, 32) and train.images.dtype == torch.uint8
    assert train.images.max() == 255 and train.images.min() == 0
    counts = test.labels.bincount()
    assert counts.min() >= 34 and counts.max() <= 38  # 10 classes of 174 to 183 images
    again = load("digits", tmp_path)
    assert torch.equal(again[0].images, train.images) and torch.equal(again[1].labels, test.labels)
    from sklearn.datasets import load_digits

    means = torch.cat([train.images, test.images]).float().mean() / 255
    assert means == pytest.approx(load_digits().images.mean() / 16, abs=0.002)


def test_unknown_names_list_the_choices(tmp_path):
    with pytest.raises(UserError, match="cifar20.*cifar10, cifar100, cinic-10, tiny_imagenet, digits.*folder"):
        load("cifar20", tmp_path)


class FakeCIFAR:
    """Stands for torchvision's class, which compares the checksums of its files."""

    base_folder, tgz_md5, meta = "batches", "0" * 32, {"filename": "meta", "md5": "1" * 32}
    train_list, test_list = [], []
    filename, url = "cifar-10-python.tar.gz", "https://example.org/cifar-10-python.tar.gz"
    classes = ["plane", "car"]

    def __init__(self, root, train, download=False):
        self.data = numpy.arange(5 * 32 * 32 * 3, dtype=numpy.uint8).reshape(5, 32, 32, 3)
        self.targets = [0, 1, 1, 0, int(train)]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_torchvisions(monkeypatch, tmp_path, name):
    monkeypatch.setattr(datasets, name.upper(), FakeCIFAR)
    train, test = load(name, tmp_path)
    assert train.images.shape == (5, 3, 32, 32) and train.images.is_contiguous()
    assert numpy.array_equal(train.images[3].permute(1, 2, 0), FakeCIFAR(None, True).data[3])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1, 0, 1], [0, 1, 1, 0, 0])
    assert train.labels.dtype == torch.int64
    assert train.classes == ("plane", "car") and train.flip


def test_cifar_is_downloaded_only_when_absent(monkeypatch, tmp_path):
    calls = []

    class Absent(FakeCIFAR):
        def __init__(self, root, train, download=False):
            calls.append((train, download))
            if not download:
                raise RuntimeError("Dataset not found or corrupted.")
            super().__init__(root, train)

    monkeypatch.setattr(datasets, "CIFAR10", Absent)
    load("cifar10", tmp_path)
    assert calls == [(True, False), (True, True), (False, False), (False, True)]


def test_failed_download_says_what_to_put_where(monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    wanted = rf"cannot download CIFAR10 .*put cifar-10-python.tar.gz from https://\S+ into {re.escape(str(tmp_path))}"
    with pytest.raises(UserError, match=wanted):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("damaged", ["cifar-100-python.tar.gz", "cifar-100-python/train", "cifar-100-python/meta"])
def test_a_damaged_archive_is_named(monkeypatch, tmp_path, damaged):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    (tmp_path / damaged).parent.mkdir(exist_ok=True)
    (tmp_path / damaged).write_bytes(b"half of it")
    wanted = (
        rf"{damaged} is damaged, its checksum is not \w{{32}}, and cannot download CIFAR100 .*put cifar-100-python.tar"
    )
    with pytest.raises(UserError, match=wanted):
        load("cifar100", tmp_path)
    assert (tmp_path / damaged).read_bytes() == b"half of it"


def test_a_new_set_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(LOADERS, "mine", lambda data_dir: (image_set(20), image_set(10)))
    assert [len(part) for part in load("mine", tmp_path)] == [20, 10]


def test_images_are_found_where_they_were():
    import lab
    from lab.data import images

    assert lab.images is images
