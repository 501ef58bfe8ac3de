"""Batches of an image set: shuffled, cropped, mirrored and normalized, a whole batch at a time on the set's device.

An image's crop and mirroring are one row of a table that says, for every pixel of the result, which pixel of the image
goes there; one gather then pads, crops and mirrors the batch.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cli import UserError
from .images import ImageSet

# Of ImageNet. The paper's code normalizes every image set with them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Batches:
    """One pass after another over an image set, in batches on the set's device; the last batch may be smaller.

    A pass for training shuffles the images, crops each at random from its zero-padded self and, where a mirrored image
    keeps its class, mirrors it with probability 1/2. All of it follows from (`seed`, index of the epoch) alone: any
    epoch can be had again without those before it, on any device, so a continued run needs no random state of ours.

    Of several processes each draws the same numbers and takes its own consecutive part of every batch, so that their
    parts together are the batches of a single process. Every process gets the same number of batches, hence a part may
    be empty where a batch has fewer images than there are processes; training refuses that.

    Args:
        batch_size: images per batch, over all processes.
        train: shuffle and augment; otherwise the images come in order and as they are.
        seed: not negative.
        pad: pixels of zeros on each side that a crop may include.
        mean: of the three channels, for pixels in [0, 1].
        std: likewise.
        rank: index of this process.
        world_size: number of processes.
        channels_last: give images in the channels-last memory format.

    Raises:
        UserError: if a batch to train on has fewer images than there are processes.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        pad: int = 4,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = False,
    ):
        self.data, self.batch_size, self.train, self.seed = data, batch_size, train, seed
        self.rank, self.world_size = rank, world_size
        self._check_shares()
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        device = data.images.device
        middle, spread = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
        self._scale, self._shift = 1 / (255 * spread), -middle / spread
        if train:
            self._sources = _sources(*self.image_size, pad, data.flip).to(device)

    def _check_shares(self) -> None:
        smallest = min(self.batch_size, len(self.data) % self.batch_size or self.batch_size)
        if self.train and smallest < self.world_size:
            raise UserError(
                f"a batch of {smallest} images cannot be shared by {self.world_size} processes; use another batch size "
                f"than {self.batch_size} for the {len(self.data)} training images, or fewer processes"
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.data.images.shape[2:]
        return height, width

    @property
    def smallest(self) -> int:
        """Images in this process's smallest part of a batch."""
        start, stop = self._part(len(self) - 1)
        return stop - start

    def __len__(self) -> int:
        """Return the number of batches of a pass."""
        return -(-len(self.data) // self.batch_size)

    def weight(self, batch: int) -> float:
        """Return the factor for this process's mean loss of a batch.

        It makes the average over processes, which is what distributed training takes, the mean over the whole batch.
        """
        start, stop = self._part(batch)
        return (stop - start) * self.world_size / min(self.batch_size, len(self.data) - batch * self.batch_size)

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images (batch, 3, height, width) in float32 and labels (batch,) of pass `index`, from 0."""
        images, labels = self.data.images, self.data.labels
        if self.train:
            order, crops = (numbers.to(images.device) for numbers in self._draw(index))
        for batch in range(len(self)):
            part = slice(*self._part(batch))
            if self.train:
                chosen = order[part]
                yield self._normalized(self._cropped(chosen, crops[part])), labels.index_select(0, chosen)
            else:
                yield self._normalized(images[part]), labels[part]

    def as_they_are(self, batch_size: int) -> "Batches":
        """Return batches of the same images, in order, neither cropped nor mirrored."""
        plain = copy.copy(self)
        plain.train, plain.batch_size = False, batch_size
        return plain

    def _part(self, batch: int) -> tuple[int, int]:
        """Return first and last + 1 of this process's positions in the pass."""
        start = batch * self.batch_size
        size = min(self.batch_size, len(self.data) - start)
        return start + size * self.rank // self.world_size, start + size * (self.rank + 1) // self.world_size

    def _draw(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the order of the images and the row of `_sources` for each position, both (images,)."""
        count, numbers = len(self.data), generator(self.seed, index)
        return (
            torch.randperm(count, generator=numbers),
            torch.randint(len(self._sources), (count,), generator=numbers),
        )

    def _cropped(self, chosen: Tensor, crops: Tensor) -> Tensor:
        """Return padded, cropped and mirrored images (batch, 3, height, width) in uint8."""
        pixels = F.pad(self.data.images.index_select(0, chosen).flatten(2), (0, 1))  # one zero for all of the padding
        sources = self._sources.index_select(0, crops)[:, None].expand(-1, 3, -1)
        return pixels.gather(2, sources).view(-1, *self.data.images.shape[1:])

    def _normalized(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul_(self._scale).add_(self._shift).contiguous(memory_format=self._memory_format)


def generator(seed: int, *key: int) -> torch.Generator:
    """Return a generator on the CPU that follows from seed and key, such as the index of an epoch.

    They are mixed, not added: seed 0 in epoch 1 is not to repeat seed 1 in epoch 0.
    """
    return torch.Generator().manual_seed(numpy.random.SeedSequence(seed, spawn_key=key).generate_state(1).item())


def _sources(height: int, width: int, pad: int, flip: bool) -> Tensor:
    """Return the source of each pixel for every crop, (crops, height * width), mirrored crops after the others.

    A source is a pixel's position in the flattened image, or `height * width` in the padding.
    """
    positions = torch.arange(height * width).view(height, width)
    padded = F.pad(positions, (pad,) * 4, value=height * width)
    crops = padded.unfold(0, height, 1).unfold(1, width, 1).flatten(0, 1)
    return (torch.cat([crops, crops.flip(2)]) if flip else crops).flatten(1)
