"""What the trainers of image classifiers say of a run and keep of its outcome."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

import factorized

from . import advice
from .data.batches import Batches
from .flags import Factorization, is_factorized
from .loop import Classifier, Epoch
from .record import Summary
from .run import Run


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


def summary(
    run: Run, args: Any, counts: Factorization, budget: float | None, form: str = "", decay: str = "", **others
) -> Summary:
    """Return what `results.json` begins with.

    Args:
        args: flags of factorization and decay.
        form: as for `method`.
        decay: as for `method`.
        others: fields of `Summary` that only the trainer knows.
    """
    return Summary(
        method=method(args, counts, form, decay), seed=args.seed, rank_scale=counts.rank_scale,
        parameters=counts.compressed, dense_parameters=counts.original, decay_budget=budget, **others,
    )  # fmt: skip


def method(args: Any, counts: Factorization, form: str = "", decay: str = "") -> str:
    """Return in words how the network is factorized, how its factors start, and what decays them.

    Args:
        args: flags of factorization and decay, with the coefficient that the run has.
        form: the factors' form, where it is not the usual one.
        decay: what decays the factors, where the common flags do not say it.
    """
    if not is_factorized(args) and counts.compressed == counts.original:
        return "dense"
    start = "spectral start" if args.spectral else "random start"
    kind = "low-rank" if is_factorized(args) else "structured"
    usual = f"{'Frobenius' if args.wd2fd else 'L2'} decay" if args.weight_decay else "no decay"
    return ", ".join(filter(None, (kind, form, start, decay or usual)))


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
