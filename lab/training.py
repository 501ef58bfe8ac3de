"""What the trainers of image classifiers do alike: batches, SGD with decay, the schedule, continuing, results."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

import factorized

from .cli import UserError, mistakes
from .data import images
from .data.batches import MEAN, STD, Batches
from .devices import Computing
from .loop import Classifier
from .run import Run


def load_batches(
    name: str,
    args: Any,
    computing: Computing,
    *,
    batch_size: int,
    evaluation_size: int,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    training: type[Batches] = Batches,
) -> tuple[Batches, Batches, Batches]:
    """Return the batches to train on, to validate on after every epoch, and to test on at the end.

    Validation and test are the same, as in the paper, unless images are held out.

    Args:
        name: of the data set (`images.load`).
        args: parsed flags, among them `data_dir`, `holdout`, `seed` and `channels_last`; without the last, images come
            in the usual order, and convolutions turn them into that of the kernels.
        training: class of the batches to train on.

    Raises:
        UserError: as `images.load`, or if no images would be left to train on.
    """
    parts = computing.main_first(lambda: images.load(name, args.data_dir))
    train, test = (part.to(computing.device) for part in parts)
    if args.holdout >= len(train):
        raise UserError(f"--holdout {args.holdout} leaves none of the {len(train)} training images")
    valid = test
    if args.holdout:
        train, valid = train.split(args.holdout, torch.Generator().manual_seed(args.seed))
    shared: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "rank": computing.rank,
        "world_size": computing.world_size,
        "channels_last": bool(args.channels_last),
    }
    return (
        training(train, batch_size, train=True, seed=args.seed, **shared),
        Batches(valid, evaluation_size, train=False, **shared),
        Batches(test, evaluation_size, train=False, **shared),
    )


def sgd(
    model: nn.Module,
    computing: Computing,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    exempt_factors: bool,
    frobenius: bool,
) -> SGD:
    """Return SGD with L2 decay, except on factors if `exempt_factors`, and Frobenius decay attached if `frobenius`."""
    groups = factorized.parameter_groups(model, weight_decay, frobenius=exempt_factors)
    optimizer = SGD(groups, lr=lr, momentum=momentum)
    if frobenius:
        decay = factorized.FrobeniusDecay(model, weight_decay, strict=False)  # a dense network has none
        decay.attach(optimizer, in_backward=not computing.scaler.is_enabled())
    return optimizer


def rehearse(run: Run, model: nn.Module, classifier: Classifier, batches: Batches, rate: float) -> None:
    """Try the network on as few images as a batch can have; and where a run is to be replaced, make a first step.

    The step is taken back. So what fails in it fails before anything is lost.

    Args:
        model: that of `classifier`, neither compiled nor distributed.
        rate: learning rate of the step.

    Raises:
        UserError: if nothing is left of such small images behind the network's pooling layers, or batch normalization
            would have a single value to normalize; if the loss is not finite after the step.
    """
    optimizer, computing = classifier.optimizer, classifier.computing
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    devices = [computing.device] if computing.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        computing.on_all(lambda: _first_step(model.train(), classifier, batches, rate if run.replaces else None))
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    optimizer.zero_grad()


def _first_step(model: nn.Module, classifier: Classifier, batches: Batches, rate: float | None) -> None:
    images, labels = next(iter(batches.epoch(0)))

    def loss(count: int | None = None) -> Tensor:
        with classifier.computing.autocast():
            return classifier.objective(model, images[:count], labels[:count])[0]

    fewest = min(2, batches.smallest)
    try:
        with torch.no_grad():
            loss(fewest)
    except (RuntimeError, ValueError) as error:
        if not str(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        height, width = batches.image_size
        raise UserError(
            f"this network cannot be trained on images of {width} x {height} pixels in batches that may have {fewest} "
            f"to a process ({str(error).splitlines()[0]}); use larger images or another batch size"
        ) from None
    if rate is None:
        return
    for group in classifier.optimizer.param_groups:
        group["lr"] = rate
    classifier.optimizer.zero_grad()
    loss().backward()
    classifier.optimizer.step()
    with torch.no_grad():
        after = loss().item()
    if not math.isfinite(after):
        raise UserError(f"the loss is {after} after the first step; lower the learning rate, which is {rate:g}")


def drops(epoch: int, epochs: int) -> int:
    """Return how often the learning rate has been divided by ten: from half and from three quarters of the epochs on.

    The first epoch is never lowered, and two milestones on one epoch count once, so that very short runs train.
    """
    return sum(epoch >= milestone for milestone in {epochs // 2, epochs * 3 // 4} - {0})


def settle(
    args: Any, rate: Callable[[int], float], epochs: int, steps: int, momentum: float
) -> tuple[Any, float | None]:
    """Return the flags with the coefficient that `--decay-budget` leads to, if it is given, and the decay budget.

    Args:
        rate: learning rate of an epoch, by its index.
        steps: of an epoch.
        momentum: of SGD. At 1, where velocities never fade, there is no budget.

    Raises:
        UserError: if no coefficient has that budget.
    """
    with mistakes():
        rates = [rate(epoch) * steps for epoch in range(epochs)]
        if args.decay_budget is not None:
            coefficient = factorized.coefficient_for(args.decay_budget, rates, momentum)
            args = dataclasses.replace(args, weight_decay=coefficient)
        return args, factorized.decay_budget(rates, args.weight_decay, momentum) if momentum < 1 else None
