"""What the trainers of image classifiers do alike: batches, SGD with decay, the schedule, continuing, results."""

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

import factorized

from . import advice
from .cli import UserError, mistakes
from .data import images
from .data.batches import MEAN, STD, Batches
from .devices import Computing
from .flags import Factorization, is_factorized
from .loop import Classifier, Epoch
from .record import Summary
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


def tell(
    run: Run,
    network: str,
    model: nn.Module,
    data: tuple[Batches, Batches, Batches],
    counts: Factorization,
    decay: str,
    budget: float | None,
) -> None:
    """Print what is trained on what, how, and where.

    Args:
        network: in words.
        model: the network, on its device.
        data: to train, validate and test on.
        decay: in words.
        budget: of decay (`settle`).
    """
    args, computing, say = run.args, run.computing, run.record.line
    train, valid, test = data
    height, width = train.image_size
    held_out = "" if valid.data is test.data else f", {len(valid.data):,} held out"
    say(
        f"data: {len(train.data):,} training images{held_out} and {len(test.data):,} test images of {width} x {height} "
        f"pixels, {len(train.data.classes)} classes"
    )
    say(f"network: {network} on {computing.describe()}")
    say(describe(counts))
    if counts.compressed != counts.original:
        example = torch.zeros(1, 3, height, width, device=computing.device)
        say(f"layers: {factorized.summary(model, example).closing_line}")
    share = "" if budget is None else f"; decay budget {budget:.3g}"
    say(f"decay: {decay}{share}")
    begun = f", from {run.source}" if run.source else ""
    say(f"run: in {run.folder}, seed {args.seed}{begun}")
    if args.wd2fd and budget is not None and budget < 0.5:
        warnings.warn(
            f"the decay budget is {budget:.2g}: below 0.5 or so Frobenius decay has hardly acted when the run ends; "
            "give --decay-budget 4, say, in place of a coefficient",
            stacklevel=2,
        )


def summary(run: Run, args: Any, counts: Factorization, budget: float | None, **others) -> Summary:
    """Return what `results.json` begins with.

    Args:
        args: flags of factorization and decay.
        others: fields of `Summary` that only the trainer knows.
    """
    return Summary(
        method=method(args, counts), seed=args.seed, rank_scale=counts.rank_scale, parameters=counts.compressed,
        dense_parameters=counts.original, decay_budget=budget, **others,
    )  # fmt: skip


def method(args: Any, counts: Factorization) -> str:
    """Return in words how the network is factorized, how its factors start, and what decays them."""
    if not is_factorized(args) and counts.compressed == counts.original:
        return "dense"
    start = "spectral start" if args.spectral else "random start"
    kind = "low-rank" if is_factorized(args) else "structured"
    return f"{kind}, {start}, {'Frobenius' if args.wd2fd else 'L2'} decay"


def results(
    classifier: Classifier,
    last: Epoch | None,
    best: float | None,
    counts: Factorization,
    valid: Batches,
    test: Batches,
) -> dict:
    """Return the fields of `results.json` that the trainers of accuracies have.

    Args:
        last: what `fit` returned. None if the run was stopped between its last checkpoint and its results.
        best: highest validation accuracy in the checkpoint of that run.
    """
    final = last.valid.top1 if last else classifier.evaluate(valid).top1
    if last:
        best = last.best
    return {
        "final validation accuracy": final,
        "best validation accuracy": final if best is None else best,
        "original parameter count": counts.original,
        "compressed parameter count": counts.compressed,
        "compression ratio": counts.ratio,
        "rank scale": counts.rank_scale,
        "validation images": validation(valid, test),
        "final test accuracy": classifier.evaluate(test).top1 if valid.data is not test.data else final,
    }


def validation(valid: Batches, test: Batches) -> str:
    """Return in words which images the network is validated on."""
    return f"{len(valid.data)} held out of the training images" if valid.data is not test.data else "the test images"


def describe(counts: Factorization) -> str:
    """Return the parameter counts in words."""
    if counts.compressed == counts.original and not counts.rank_scale:
        return f"weights: {counts.original:,}"
    scale = f" at rank scale {counts.rank_scale:g}" if counts.rank_scale else ""
    return (
        f"weights: {counts.original:,} dense, {counts.compressed:,} factorized{scale}; "
        f"compression ratio {counts.ratio:.6f}"
    )


def ending(
    run: Run,
    last: Epoch | None,
    files: Mapping[str, str],
    trained: tuple[Classifier, Batches] | None = None,
    more: Iterable[str] = (),
) -> Iterator[str]:
    """Yield lines that say what came out of a run, what is in its folder, and what would have been faster.

    The last is measured as it is asked for, once the results are written.

    Args:
        last: what `fit` returned.
        files: what is in which file, in words.
        trained: what was trained, on which batches; None to measure nothing.
        more: lines of the trainer's own.
    """
    if last:
        epoch = f" after epoch {last.best_epoch}" if last.best_epoch else ""
        yield (
            f"best validation accuracy {last.best:.2f}%{epoch}, last {last.valid.top1:.2f}% after epoch "
            f"{last.index + 1}; {run.record.seconds:,.0f} s"
        )
    yield f"in {run.folder}: " + ", ".join(f"{name} {what}" for name, what in files.items())
    yield from more
    if trained and run.record.seconds >= advice.LONG:
        classifier, batches = trained
        images, labels = next(iter(batches.epoch(0)))
        model = classifier.model.train()

        def step() -> None:
            classifier.objective(model, images, labels)[0].backward()

        yield from advice.faster(step, model, run.computing, run.record.seconds)
