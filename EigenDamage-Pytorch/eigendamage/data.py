"""The image sets of this study, each normalized with its own statistics."""

from typing import Any

from lab import training
from lab.data.batches import Batches
from lab.devices import Computing

# Mean and standard deviation of the channels, for pixels in [0, 1]. Other image sets get those of ImageNet.
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "cinic-10": ((0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835)),
    "tiny_imagenet": (
        (0.48024578664982126, 0.44807218089384643, 0.3975477478649648),
        (0.2769864069088257, 0.26906448510256, 0.282081906210584),
    ),
}


def load(name: str, args: Any, computing: Computing, batch_size: int) -> tuple[Batches, Batches, Batches]:
    """Return the batches to train, validate and test on.

    Args:
        name: of the data set.
        args: as for `training.load_batches`.
        batch_size: of training; evaluation has batches of 256.

    Raises:
        UserError: as `training.load_batches`.
    """
    options = dict(zip(("mean", "std"), NORMALIZATION.get(name, ())))
    return training.load_batches(name, args, computing, batch_size=batch_size, evaluation_size=256, **options)
