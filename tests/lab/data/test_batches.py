"""Batches, against image-by-image computations and torchvision."""

import numpy
import pytest
import torch
from PIL import Image
from torchvision import transforms

from lab.cli import UserError
from lab.data.batches import MEAN, STD, Batches
from lab.data.images import ImageSet
from tests.lab.images import image_set, whole_epoch


def raw(data: ImageSet, batch_size: int = 16, **options) -> Batches:
    """Batches whose normalization gives back the pixels."""
    return Batches(data, batch_size, **options, mean=(0, 0, 0), std=(1 / 255,) * 3)


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
