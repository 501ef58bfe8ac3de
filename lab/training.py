"""What the trainers of image classifiers do alike: batches, SGD with decay, the schedule, continuing, results."""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Optimizer

import factorized
from lab.flags import Factorization

from . import checkpoint
from .cli import UserError
from .data import images
from .data.batches import MEAN, STD, Batches
from .devices import Computing
from .loop import Classifier, Epoch
from .record import check_same_arguments


def load_batches(
    name: str,
    args: argparse.Namespace,
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
        args: parsed flags, among them `data_dir`, `holdout`, `seed` and `channels_last`.
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
    shared = {
        "mean": mean,
        "std": std,
        "rank": computing.rank,
        "world_size": computing.world_size,
        "channels_last": args.channels_last,
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


def check_step(classifier: Classifier, model: nn.Module, batches: Batches) -> None:
    """Let a copy of `model` do the forward pass of a training step, on as few images as a batch can have.

    Raises:
        UserError: if it cannot, for example because nothing is left of such small images behind its pooling layers, or
            because batch normalization would have a single value to normalize.
    """
    count, (height, width) = min(batches.smallest, 2), batches.image_size
    device = classifier.computing.device
    images, labels = torch.zeros(count, 3, height, width, device=device), torch.zeros(count, dtype=int, device=device)
    try:
        with torch.no_grad(), torch.random.fork_rng(), classifier.computing.autocast():
            classifier.objective(copy.deepcopy(model).train(), images, labels)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"this network cannot be trained on images of {width} x {height} pixels in batches that may have {count} "
            f"to a process ({str(error).splitlines()[0]}); use larger images or another batch size"
        ) from None


def drops(epoch: int, epochs: int) -> int:
    """Return how often the learning rate has been divided by ten: from half and from three quarters of the epochs on.

    The first epoch is never lowered, and two milestones on one epoch count once, so that very short runs train.
    """
    return sum(epoch >= milestone for milestone in {epochs // 2, epochs * 3 // 4} - {0})


def restore(
    source: Path | None, args: argparse.Namespace, model: nn.Module, optimizer: Optimizer, computing: Computing
) -> dict:
    """Restore the checkpoint `source`, which `record.find_checkpoint` has found, and return what it holds.

    Args:
        source: None for a new run, about which there is nothing to return.
        args: parsed flags, among them `epochs` or `epoch`.

    Raises:
        UserError: as `restore_training`; if the checkpoint is of a run with other arguments, or longer than this one.
    """
    if not source:
        return {}
    state = checkpoint.load(source, computing.device)
    checkpoint.restore_training(state, model, optimizer, computing, source)
    if "args" in state:
        check_same_arguments(state["args"], args, f"{source} is of", free=("epoch", "epochs"))
    flag = "epochs" if "epochs" in args else "epoch"
    epochs = getattr(args, flag)
    if state.get("epoch", 0) > epochs:
        raise UserError(f"{source} has been trained for {state['epoch']} epochs already, --{flag} is {epochs}")
    return state


def results(
    classifier: Classifier,
    last: Epoch | None,
    best: float | None,
    counts: Factorization,
    valid: Batches,
    test: Batches,
) -> dict:
    """Return the fields of `results.json` that all trainers have.

    Args:
        last: what `fit` returned. None if the run was stopped between its last checkpoint and its results.
        best: highest validation accuracy in the checkpoint of that run.
    """
    final = last.valid.top1 if last else classifier.evaluate(valid).top1
    held_out = valid.data is not test.data
    return {
        "final validation accuracy": final,
        "best validation accuracy": last.best if last else final if best is None else best,
        "original parameter count": counts.original,
        "compressed parameter count": counts.compressed,
        "compression ratio": counts.ratio,
        "rank scale": counts.rank_scale,
        "validation images": f"{len(valid.data)} held out of the training images" if held_out else "the test images",
        "final test accuracy": classifier.evaluate(test).top1 if held_out else final,
    }


def describe(counts: Factorization) -> str:
    """Return the parameter counts in words."""
    if not counts.rank_scale:
        return f"weights: {counts.original:,}"
    return (
        f"weights: {counts.original:,} dense, {counts.compressed:,} factorized at rank scale {counts.rank_scale:g}; "
        f"compression ratio {counts.ratio:.6f}"
    )
