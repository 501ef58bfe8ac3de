"""What train.py says of a run where it begins and where it ends. What is told of is a `Training`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from factorized import summary
from lab import advice
from lab.account import describe
from lab.flags import Factorization

from .keeping import AVERAGE, BEST, LAST
from .log import shown
from .meter import Loss


def beginning(training: Any, decay: str, begun: Path | None) -> Iterator[str]:
    """Yield lines that say what is trained on what, how, and where.

    Args:
        decay: in words.
        begun: the checkpoint that the run begins with.
    """
    args, data = training.args, training.data
    corpora = [f"{len(corpus):,} of {subset}" for subset, corpus in data.valid.items()]
    sizes = " and ".join(f"{len(dictionary):,} ({lang})" for lang, dictionary in zip(data.languages, data.dictionaries))
    yield (
        f"data: {args.data}, {len(data.train):,} training pairs, {', '.join(corpora)}; dictionaries of {sizes} symbols"
    )
    limit = f"{args.max_tokens:,} tokens" + (f" and {args.batch_size:,} sentences" if args.batch_size else "")
    yield f"network: {args.arch} on {training.computing.describe()}; batches of up to {limit} a process"
    original, parameters = training.parameter_counts()
    yield describe(Factorization(original, parameters, training.config.rank_scale))
    if parameters != original:
        yield f"layers: {summary(training.trainer.model).closing_line}"
    smoothing = f" with label smoothing {args.label_smoothing:g}" if args.label_smoothing else ""
    yield f"method: {training.method}; {args.optimizer} at {args.lr_scheduler}, cross-entropy{smoothing}"
    share = "" if training.budget is None else f"; decay budget {training.budget:.3g}"
    yield f"decay: {decay}{share}"
    how = "continuing" if training.run.source else "from"
    origin = f", {how} {begun}" if begun else ""
    yield f"run: in {training.run.folder}, seed {args.seed}{origin}"


def ending(training: Any, final: Loss) -> Iterator[str]:
    """Yield lines that say what came out of the run, what is in its folder, and what would have been faster."""
    args, folder, name = training.args, training.run.folder, training.args.best_checkpoint_metric
    unit = {"bleu": "BLEU", "ppl": "perplexity"}.get(name, name.replace("_", " "))
    last = final.values()[name]
    best = Loss.of(training.best).values()[name] if training.best else last
    epoch = f" after epoch {training.best['epoch']}" if training.best else ""
    yield (
        f"best validation {unit} {shown(name, best)}{epoch}, last {shown(name, last)} after "
        f"{training.trainer.updates:,} updates; {training.record.seconds:,.0f} s"
    )
    if args.no_save:
        yield f"in {folder}: results.json the numbers; --no-save has kept no network"
    else:
        what = {
            BEST: "is the best network",
            LAST: "the last, to go on from",
            AVERAGE: "the mean of the last epochs'",
        }
        there = ", ".join(f"{file} {text}" for file, text in what.items() if (folder / file).exists())
        longer = f"--max-update {2 * args.max_update}" if args.max_update else f"--epochs {2 * max(args.epochs, 1)}"
        yield f"in {folder}: {there}, results.json the numbers"
        yield (
            f"translate: generate.py {args.data} --path {folder / BEST} --remove-bpe; "
            f"go on: the same command with {longer}"
        )
    if training.record.seconds >= advice.LONG:
        update = next(training.feed.updates(training.feed.batches(1), 0))
        step = partial(training.trainer.practice, update.share, update.counts["samples"])
        yield from advice.faster(step, training.trainer.model, training.computing, training.record.seconds)
