"""Trains a network without batch normalization through `lab`; `torchrun` starts it for test_trainer_distributed.py.

`python -m tests.resnet.shares FILE` writes the weights after two epochs, the averages, and the processes' evaluation.
"""

import sys

import torch
from torch import nn

import factorized
from lab import devices
from lab.data.batches import Batches
from lab.flags import Training
from lab.loop import Classifier
from tests.resnet import tiny


def main(path: str) -> None:
    """Train, and let the main process write `path`."""
    torch.set_num_threads(1)
    computing = devices.start(Training(device="cpu", seed=4))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    factorized.factorize(model, rank_scale=0.3, exclude=["0"])
    groups = factorized.parameter_groups(model, 1e-3)
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    factorized.FrobeniusDecay(model, 1e-3).attach(optimizer, in_backward=True)
    share = {"rank": computing.rank, "world_size": computing.world_size}
    images, test = tiny.digits()
    # 96 images in batches of 28 leave a last batch of 12, and 9 test images in batches of 4 one of a single image.
    batches = Batches(images, 28, train=True, **share)
    few = Batches(test.split(9, None)[1], 4, train=False, **share)
    classifier = Classifier(computing.wrap(model), optimizer, computing)
    averages = [classifier.train_epoch(batches, epoch) for epoch in range(2)]
    evaluation = classifier.evaluate(few)
    if computing.is_main:
        passes = [tuple(values) for values in (*averages, evaluation)]  # plain tuples, as a weights-only load needs
        torch.save({"weights": model.state_dict(), "passes": passes}, path)


if __name__ == "__main__":
    main(sys.argv[1])
