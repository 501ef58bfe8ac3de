"""Images a second that `Batches` gives for training, against a DataLoader with two workers and PIL transforms.

20,000 random images of CIFAR's size in batches of 128, on a CPU with two threads. A round is one epoch. The workers are
started before the rounds that count. Target: at least 20 times the rate of the DataLoader.
"""

import torch
from PIL import Image
from timing import describe, medians
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lab.data.batches import MEAN, STD, Batches
from lab.data.images import ImageSet

IMAGES, BATCH_SIZE, REPEATS = 20_000, 128, 7


class PILImages(Dataset):
    """Image by image, as torchvision's CIFAR10 with the usual transforms."""

    def __init__(self, data: ImageSet):
        self.pixels, self.labels = data.images.permute(0, 2, 3, 1).contiguous().numpy(), data.labels.tolist()
        steps = transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, 4), transforms.ToTensor()
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def main() -> None:
    print(describe())
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(images, torch.randint(10, (IMAGES,)), tuple("0123456789"), flip=True)
    loader = DataLoader(PILImages(data), BATCH_SIZE, shuffle=True, num_workers=2, persistent_workers=True)
    batches = Batches(data, BATCH_SIZE, train=True)
    channels_last = Batches(data, BATCH_SIZE, train=True, channels_last=True)
    candidates = {
        "DataLoader, PIL, 2 workers": lambda: count(loader),
        "Batches": lambda: count(batches.epoch(0)),
        "Batches, channels_last": lambda: count(channels_last.epoch(0)),
    }
    rates = {name: IMAGES / seconds for name, seconds in medians(candidates, REPEATS).items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:,.0f} images/s")
    plain, batched, _ = rates.values()
    print(f"medians of {REPEATS} epochs; Batches / DataLoader: {batched / plain:.1f}  (target: >= 20)")


def count(batches) -> None:
    """Go through `batches` and check that no image is missing."""
    assert sum(len(labels) for _, labels in batches) == IMAGES


if __name__ == "__main__":
    main()
