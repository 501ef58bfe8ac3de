"""A training run: epochs, validation, checkpoints, results."""

import argparse
import math
from pathlib import Path

from lab import checkpoint
from lab.devices import Computing
from lab.record import Record, find_checkpoint, is_in, open_folder, plain

from . import checkpoint as translation_checkpoint
from . import optimization, schedule
from .config import TransformerConfig, dense_parameter_count
from .diagnostics import diagnostics
from .feed import Feed, load_data
from .log import Log, form_of
from .trainer import Loss, Meter, Trainer
from .transformer import build_model

LAST, BEST, AVERAGE = "checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_avg.pt"
FILES = ("checkpoint*.pt",)

# What may differ between the parts of a run: how long it is, what it shows and keeps, where it runs.
_FREE = ("max_epoch", "max_update", "data", "device_id", "cpu", "dump", "log_interval", "log_format", "no_progress_bar")
_FREE += ("save_interval", "no_epoch_checkpoints", "average_last", "no_save", "distributed_world_size")


def train(args: argparse.Namespace, config: TransformerConfig, computing: Computing) -> None:
    """Train a model, or go on with a run, and leave its files in `--save-dir`.

    All that can be wrong with the flags and data is found before anything is written.

    Raises:
        UserError: for a mistake of the user's.
        RunError: if the loss is not finite.
    """
    data = load_data(args)
    model = computing.place(build_model(config, *map(len, data.dictionaries)))
    steps = optimization.build(args, model)
    options = {"smoothing": args.label_smoothing, "clip_norm": args.clip_norm, "seed": args.seed}
    trainer = Trainer(model, steps, schedule.build(args), computing, **options)
    feed = Feed(args, config, data, computing)

    folder: Path = args.save_dir
    request = "" if args.overwrite and args.resume == "auto" else args.resume
    source = computing.on_main(lambda: find_checkpoint(args, folder, LAST, FILES, request, _FREE))
    state = {}
    if source:
        state = translation_checkpoint.load(source, computing.device)
        translation_checkpoint.check_data(state, data.languages, data.dictionaries, source)
        trainer.load_state_dict(state, source)
        translation_checkpoint.check_config(state, config, source)
    else:
        update = next(feed.updates(feed.batches(1), 0))
        trainer.rehearse(update.share, **update.counts)
    computing.on_main(lambda: open_folder(folder, args, keep=is_in(source, folder), files=FILES))
    record = Record(folder, computing.is_main, state.get("epoch", 0), state.get("seconds", 0.0))
    run = Run(args, feed, trainer, record, state)
    for line in [*run.describe(), *steps.description, *([f"| continuing {source}"] if source else [])]:
        record.line(line)
    run.go()
    record.close()


class Run:
    """A run in progress.

    Args:
        state: what a checkpoint holds, to go on from there.

    Attributes:
        epoch: present one, counted from 1.
        offset: batches of it that are done.
        best: the epoch with the lowest validation loss: its number, `loss` and `nll_loss`. Empty before the first.
        temporary: epochs whose checkpoints are kept only until they are averaged.
        metrics: diagnostics of the present epoch.
    """

    def __init__(self, args: argparse.Namespace, feed: Feed, trainer: Trainer, record: Record, state: dict):
        self.args, self.feed, self.trainer, self.record = args, feed, trainer, record
        self.computing, self.data, self.config = trainer.computing, feed.data, trainer.model.config
        self.folder: Path = args.save_dir
        form = self.computing.on_main(lambda: form_of(args))  # all processes take part in what a line needs
        self.log = Log(record, form, args.log_interval)
        self.epoch, self.offset = state.get("epoch", 1), state.get("offset", 0)
        self.best: dict = state.get("best", {})
        self.temporary: list[int] = state.get("temporary", [])
        self.metrics: dict = state.get("metrics", {})

    # -- training ----------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Train to the end and write the results."""
        valid = None
        while not self._is_over():
            valid = self._train_epoch()
        if self.args.average_last and self.computing.is_main:
            paths = self._last_epochs() or [self.folder / LAST]
            checkpoint.save(self.folder / AVERAGE, translation_checkpoint.average(paths))
            self.record.line(f"| {AVERAGE}: mean of {', '.join(path.name for path in paths)}")
        self.record.line(f"| done training in {self.record.seconds:.1f} seconds")
        self.record.results(self._results(valid or self._validate()))

    def _is_over(self) -> bool:
        args, trainer = self.args, self.trainer
        slow = trainer.updates and trainer.lr <= args.min_lr and not trainer.schedule.is_warming_up(trainer.updates)
        return bool(0 < args.max_update <= trainer.updates or 0 < args.max_epoch < self.epoch or slow)

    def _train_epoch(self) -> dict[str, Loss] | None:
        """Train to the end of the epoch or of the run; return the losses if this ended with a validation."""
        trainer, epoch = self.trainer, self.epoch
        batches = self.feed.batches(epoch)
        if not self.offset:
            trainer.meter = Meter(self.computing)
            self.metrics = {} if self.args.no_diagnostics else diagnostics(trainer.model)
            self.metrics["hyper/lr"] = trainer.lr
        self._make_updates(batches)
        averages = self._averages()
        self.log.after(epoch, averages)

        valid = self._validate() if epoch % self.args.validate_interval == 0 else None
        if self.offset == len(batches):
            trainer.schedule.after_epoch(epoch, next(iter(valid.values())).loss if valid else None)
            self.epoch, self.offset = epoch + 1, 0
        if valid is None and self._is_over():
            valid = self._validate()

        scalars = self.metrics | {"train/loss": averages["loss"], "train/nll_loss": averages["nll_loss"]}
        for subset, loss in (valid or {}).items():
            scalars |= {f"{subset}/loss": loss.loss, f"{subset}/nll_loss": loss.nll}
            values = {"valid_loss": loss.loss, "valid_nll_loss": loss.nll, "valid_ppl": loss.perplexity}
            self.log.after(epoch, {**values, "num_updates": trainer.updates}, subset)
        self.record.scalars(scalars, epoch)
        if valid:
            self._keep(epoch, next(iter(valid.values())))
        return valid

    def _make_updates(self, batches: list) -> None:
        """Train on the rest of the epoch's `batches`, or until the run has as many updates as it shall."""
        args, trainer, epoch = self.args, self.trainer, self.epoch
        total = math.ceil((len(batches) - self.offset) / (args.update_freq * self.computing.world_size))
        for update in self.log.follow(self.feed.updates(batches, self.offset), total, epoch):
            done, made = self.offset, trainer.updates
            trainer.step(update.share, **update.counts)
            self.offset = update.end
            if trainer.updates == made:  # its batches did not fit into memory
                continue
            if self.log.wants(done, update.end):
                self.log.within(epoch, update.end, len(batches), self._averages())
            if args.save_interval > 0 and trainer.updates % args.save_interval == 0:
                trainer.meter.read(f"epoch {epoch}")  # no checkpoint of a run that has gone wrong
                self._save([] if args.no_epoch_checkpoints else [f"checkpoint{epoch}_{update.end}.pt"])
            if trainer.updates == args.max_update:
                return

    def _averages(self) -> dict[str, float]:
        averages = self.trainer.meter.read(f"epoch {self.epoch}")
        return {**averages, "num_updates": self.trainer.updates, "lr": self.trainer.lr}

    def _validate(self) -> dict[str, Loss]:
        losses = {}
        for subset, corpus in self.data.valid.items():
            share, counts = self.feed.validation(corpus)
            losses[subset] = self.trainer.evaluate(share, counts["tokens"], counts["samples"])
        return losses

    # -- files -------------------------------------------------------------------------------------------------------

    def _keep(self, epoch: int, valid: Loss) -> None:
        """Save what an epoch has led to."""
        names = []
        if not self.best or valid.loss < self.best["loss"]:
            self.best = {"epoch": epoch, "loss": valid.loss, "nll_loss": valid.nll}
            names.append(BEST)
        last = self.args.average_last
        if last or not self.args.no_epoch_checkpoints:
            names.append(f"checkpoint{epoch}.pt")
        outdated = []
        if last and self.args.no_epoch_checkpoints:
            self.temporary.append(epoch)
            outdated, self.temporary = self.temporary[:-last], self.temporary[-last:]
        self._save(names)
        if self.computing.is_main:
            for number in outdated:
                (self.folder / f"checkpoint{number}.pt").unlink(missing_ok=True)

    def _last_epochs(self) -> list[Path]:
        """Return the checkpoints of the last epochs that are to be averaged, in order."""
        numbers = (path.stem.removeprefix("checkpoint") for path in self.folder.glob("checkpoint*.pt"))
        finished = self.epoch if self.offset else self.epoch - 1  # later ones are of a part that was not continued
        numbers = sorted(int(n) for n in numbers if n.isdecimal() and int(n) <= finished)
        return [self.folder / f"checkpoint{n}.pt" for n in numbers[-self.args.average_last :]]

    def _save(self, names: list[str]) -> None:
        """Write checkpoints, `LAST` after all others, so that an interruption repeats what led to them."""
        trained = self.trainer.state_dict()  # all processes take part
        if self.args.no_save or not self.computing.is_main:
            return
        state = {
            **translation_checkpoint.identity(self.config, self.data.languages, self.data.dictionaries),
            **trained,
            "args": plain(self.args),
            "epoch": self.epoch,
            "offset": self.offset,
            "best": self.best,
            "temporary": self.temporary,
            "metrics": self.metrics,
            "seconds": self.record.seconds,
        }
        for name in [*names, LAST]:
            checkpoint.save(self.folder / name, state)

    def describe(self) -> list[str]:
        """Return lines about the data, the model and how it is trained."""
        args, data, computing = self.args, self.data, self.computing
        lines = [f"| [{lang}] dictionary: {len(d)} types" for lang, d in zip(data.languages, data.dictionaries)]
        for subset, corpus in [(args.train_subset, data.train), *data.valid.items()]:
            lines.append(f"| {args.data} {subset} {len(corpus)} examples")
        original, parameters = self._parameter_counts()
        ratio = f" ({parameters / original:.5f} of {original} dense)" if parameters != original else ""
        return [
            *lines,
            f"| model {args.arch}, criterion {args.criterion}",
            f"| num. model params: {parameters}{ratio}",
            f"| training on {computing.world_size} x {computing.device}",
            f"| max tokens per process = {args.max_tokens} and max sentences per process = {args.max_sentences}",
        ]

    def _parameter_counts(self) -> tuple[int, int]:
        """Return the number of parameters of the dense model, and of this one."""
        original = dense_parameter_count(self.config, *map(len, self.data.dictionaries))
        return original, sum(p.numel() for p in self.trainer.model.parameters())

    def _results(self, valid: dict[str, Loss]) -> dict:
        original, parameters = self._parameter_counts()
        final = next(iter(valid.values()))
        return {
            "final validation loss": final.nll,
            "best validation loss": self.best.get("nll_loss", final.nll),
            "best epoch": self.best.get("epoch", self.epoch),
            "updates": self.trainer.updates,
            "original parameter count": original,
            "compressed parameter count": parameters,
            "compression ratio": parameters / original,
        }
