"""Image sets, batches and folders, against image-by-image computations and torchvision."""

import io
import os
import re
import tarfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from lab import checkpoint, image_folder
from lab.batches import MEAN, STD
from lab.cli import UserError
from lab.images import LOADERS, Batches, ImageSet, load

ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def image_set(count: int = 50, classes: int = 5, size: tuple[int, int] = (8, 6), flip: bool = True) -> ImageSet:
    """Random images without a zero in them, so that padding can be told from them; all have different first pixels."""
    images = torch.randint(1, 256, (count, 3, *size), dtype=torch.uint8)
    images[:, 0, 0, 0] = 1 + torch.arange(count)
    names = tuple(f"class {i}" for i in range(classes))
    return ImageSet(images, torch.arange(count) * 7 % classes, names, flip)


def write_image(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: int = 4, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, two training images and one test image each."""
    for position, name in enumerate(("bee", "ant")):
        for file in ("train/{}/0.png", "train/{}/1.PNG", "test/{}/0.png"):
            write_image(tmp_path / "set" / file.format(name), (position, 100 + position, 200))
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The files decoded so far."""
    files, original = [], image_folder._image
    monkeypatch.setattr(image_folder, "_image", lambda file: files.append(file) or original(file))
    return files


def whole_epoch(batches: Batches, index: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches.epoch(index))
    return torch.cat(images), torch.cat(labels)


def raw(data: ImageSet, batch_size: int = 16, **options) -> Batches:
    """Batches whose normalization gives back the pixels."""
    return Batches(data, batch_size, **options, mean=(0, 0, 0), std=(1 / 255,) * 3)


# Image sets


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


# Batches


def test_evaluation_is_torchvisions_normalization_in_order():
    data = image_set(50)
    batches = Batches(data, 16, train=False)
    sizes = [len(labels) for _, labels in batches.epoch(0)]
    assert sizes == [16, 16, 16, 2] and len(batches) == 4
    images, labels = whole_epoch(batches)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in data.images])
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, atol=2e-6, rtol=0)
    assert torch.equal(labels, data.labels)


@pytest.mark.parametrize("pad", [0, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_every_training_image_is_a_crop_of_its_padded_self(flip, pad):
    data = image_set(50, flip=flip)
    height, width = data.images.shape[2:]
    order, crops = (numbers.tolist() for numbers in raw(data, train=True, pad=pad)._draw(5))
    images, labels = whole_epoch(raw(data, train=True, pad=pad), 5)
    assert sorted(order) == list(range(50)) and order != sorted(order)
    for image, label, index, crop in zip(images, labels, order, crops):
        mirrored, place = divmod(crop, (2 * pad + 1) ** 2)
        top, left = divmod(place, 2 * pad + 1)
        padded = numpy.pad(data.images[index].numpy(), ((0, 0), (pad, pad), (pad, pad)))
        expected = padded[:, top : top + height, left : left + width]
        expected = expected[:, :, ::-1] if mirrored else expected
        torch.testing.assert_close(image, torch.from_numpy(expected.copy()).float(), atol=1e-3, rtol=0)
        assert label == data.labels[index]


def test_padding_is_a_black_pixel():
    images, _ = whole_epoch(Batches(image_set(50), 16, train=True), 0)
    lowest = images.amin((0, 2, 3))
    torch.testing.assert_close(lowest, -torch.tensor(MEAN) / torch.tensor(STD))


def test_crops_and_flips_are_uniform():
    batches = Batches(image_set(50), 16, train=True)
    drawn = torch.cat([batches._draw(epoch)[1] for epoch in range(400)])
    mirrored, place = drawn // 81, drawn % 81
    assert mirrored.max() == 1
    assert abs(mirrored.float().mean() - 0.5) < 0.015  # 4 standard deviations of 20,000 flips
    expected = len(drawn) / 81
    assert ((place.bincount(minlength=81) - expected).abs() < 5 * expected**0.5).all()


def test_digits_are_not_mirrored():
    batches = Batches(image_set(50, flip=False), 16, train=True)
    assert max(int(batches._draw(epoch)[1].max()) for epoch in range(10)) == 80


def test_an_epoch_does_not_depend_on_others():
    data = image_set(50)
    batches = Batches(data, 16, train=True, seed=3)
    passes = [whole_epoch(batches, epoch) for epoch in range(4)]
    torch.manual_seed(99)
    again = whole_epoch(Batches(data, 16, train=True, seed=3), 3)
    assert all(torch.equal(a, b) for a, b in zip(passes[3], again))
    interleaved = zip(batches.epoch(0), batches.epoch(3))
    assert all(torch.equal(a[0], b[0]) for a, b in zip((later for _, later in interleaved), batches.epoch(3)))


def test_seeds_and_epochs_never_share_an_order():
    data = image_set(50)
    pairs = [(seed, epoch) for seed in (0, 1, 2, 2**32, 2**32 + 1) for epoch in range(20)]
    orders = {tuple(Batches(data, 16, train=True, seed=seed)._draw(epoch)[0].tolist()) for seed, epoch in pairs}
    assert len(orders) == len(pairs)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_together_give_the_batches_of_one(train, world_size):
    data = image_set(53 if train else 50)  # last batches of 5 and 2: in evaluation a process may get none
    single = list(Batches(data, 16, train=train).epoch(2))
    ranks = [Batches(data, 16, train=train, rank=rank, world_size=world_size) for rank in range(world_size)]
    shares = list(zip(*(batches.epoch(2) for batches in ranks)))
    assert len(shares) == len(single) == len(ranks[0])
    for batch, ((images, labels), parts) in enumerate(zip(single, shares)):
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
        assert all(part[0].shape[1:] == images.shape[1:] for part in parts)
        means = [rank.weight(batch) * part[0].mean() for rank, part in zip(ranks, parts) if len(part[1])]
        torch.testing.assert_close(sum(means) / world_size, images.mean())
        assert all(rank.weight(batch) == 0 for rank, part in zip(ranks, parts) if not len(part[1]))


def test_training_refuses_a_batch_with_fewer_images_than_processes():
    with pytest.raises(UserError, match="2 images cannot be shared by 3 processes.* than 16 for the 50"):
        Batches(image_set(50), 16, train=True, world_size=3)
    Batches(image_set(48), 16, train=True, world_size=3)


def test_weight_of_a_single_process_is_one():
    batches = Batches(image_set(50), 16, train=True)
    assert [batches.weight(batch) for batch in range(len(batches))] == [1, 1, 1, 1]


@pytest.mark.parametrize("train", [True, False])
def test_channels_last_is_a_matter_of_memory_only(train):
    data = image_set(50)
    plain, last = (Batches(data, 16, train=train, channels_last=value) for value in (False, True))
    for (a, _), (b, _) in zip(plain.epoch(1), last.epoch(1)):
        assert a.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a, b)


@pytest.mark.parametrize("train", [True, False])
def test_the_set_itself_stays_as_it_is(train):
    data = image_set(50)
    before = data.images.clone(), data.labels.clone()
    for images, _ in Batches(data, 16, train=train).epoch(0):
        images.zero_()
    assert torch.equal(data.images, before[0]) and torch.equal(data.labels, before[1])


@pytest.mark.gpu
@pytest.mark.parametrize("train", [True, False])
def test_the_gpu_gives_what_the_cpu_gives(train):
    data = image_set(50)
    on_cpu, on_gpu = (whole_epoch(Batches(data.to(device), 16, train=train), 1) for device in ("cpu", "cuda"))
    assert on_gpu[0].device.type == "cuda"
    torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0], atol=1e-6, rtol=0)
    assert torch.equal(on_gpu[1].cpu(), on_cpu[1])


# Named sets


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
    with pytest.raises(UserError, match="cifar20.*cifar10, cifar100, digits.*folder"):
        load("cifar20", tmp_path)


class FakeCIFAR:
    """Stands for torchvision's class, which compares the checksums of its files."""

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


# Folders


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
    return "cow is of a class that .*train does not have"


def spoil_no_test(folder):
    (folder / "test").rename(folder / "other")
    return "must have a folder train, and test or val"


def spoil_no_classes(folder):
    (folder / "train").rename(folder / "other")
    (folder / "train").mkdir()
    return "train has no folders"


def spoil_link(folder):
    (folder / "train/bee/2.png").symlink_to(folder / "nowhere.png")
    return "cannot read .*2.png"


SPOILS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILS)
def test_bad_folder_is_named(folder, tmp_path, spoil):
    with pytest.raises(UserError, match=spoil(folder)):
        load(str(folder), tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.pt"))


# The cache of decoded folders


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


def test_a_new_set_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(LOADERS, "mine", lambda data_dir: (image_set(20), image_set(10)))
    assert [len(part) for part in load("mine", tmp_path)] == [20, 10]
