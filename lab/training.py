"""What the trainers of image classifiers do alike: batches, SGD with decay, the schedule, continuing, results."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Optimizer

import factorized
from factorized.flags import Factorization

from . import checkpoint, images
from .batches import MEAN, STD, Batches
from .classifier import Classifier, Epoch
from .cli import UserError
from .devices import Computing
from .record import find_checkpoint


def load_batches(
    name: str,
    args: argparse.Namespace,
    computing: Computing,
    *,
    batch_size: int,
    evaluation_size: int,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> tuple[Batches, Batches, Batches]:
    """Return the batches to train on, to validate on after every epoch, and to test on at the end.

    Validation and test are the same, as in the paper, unless images are held out.

    Args:
        name: of the data set (`images.load`).
        args: parsed flags, among them `data_dir`, `holdout`, `seed` and `channels_last`.
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
        Batches(train, batch_size, train=True, seed=args.seed, **shared),
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
        in_backward = not computing.scaler.is_enabled()
        factorized.FrobeniusDecay(model, weight_decay, in_backward=in_backward).attach(optimizer)
    return optimizer


def drops(epoch: int, epochs: int) -> int:
    """Return how often the learning rate has been divided by ten: from half and from three quarters of the epochs on.

    The first epoch is never lowered, and two milestones on one epoch count once, so that very short runs train.
    """
    return sum(epoch >= milestone for milestone in {epochs // 2, epochs * 3 // 4} - {0})


def resume(
    args: argparse.Namespace,
    folder: Path,
    name: str,
    files: Iterable[str],
    model: nn.Module,
    optimizer: Optimizer,
    computing: Computing,
    epochs: int,
    request: str | None = None,
) -> tuple[Path | None, dict]:
    """Restore the checkpoint to continue from, if there is one; return its path, else None, and what it holds.

    Args:
        folder, name, files, request: as for `record.find_checkpoint`.

    Raises:
        UserError: as `find_checkpoint` and `restore_training`; if the checkpoint is of a longer run than `epochs`.
    """
    source = computing.on_main(lambda: find_checkpoint(args, folder, name, files, request))
    if not source:
        return None, {}
    state = checkpoint.load(source, computing.device)
    checkpoint.restore_training(state, model, optimizer, computing, source)
    if state.get("epoch", 0) > epochs:
        flag = "--epochs" if "epochs" in args else "--epoch"
        raise UserError(f"{source} has been trained for {state['epoch']} epochs already, {flag} is {epochs}")
    return source, state


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
