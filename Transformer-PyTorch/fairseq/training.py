"""A training run: epochs, validation, checkpoints, results."""

from pathlib import Path

from lab import checkpoint
from lab.cli import UserError, mistakes
from lab.devices import Computing
from lab.earlier import is_in
from lab.record import Summary
from lab.run import Run
from lab.settings import Settings, plain

from . import checkpoint as translation_checkpoint
from . import optimization, schedule, story
from .config import TransformerConfig, dense_parameter_count
from .diagnostics import norms_of_products
from .feed import Feed, load_data
from .keeping import AVERAGE, FILES, LAST, Keeper, last_epochs
from .log import Log, form_of
from .meter import Loss, Meter
from .trainer import Trainer
from .transformer import build_model, scale_for_ratio
from .validation import METRICS, Validation

# What may differ between the parts of a run: how long it is, what it shows and keeps, where it runs.
_FREE = ("epochs", "max_update", "patience", "data", "device_id", "cpu", "dump", "no_progress_bar", "log_interval")
_FREE += (
    "log_format",
    "save_interval",
    "save_interval_updates",
    "keep_last_epochs",
    "keep_interval_updates",
    "no_save",
)
_FREE += ("no_epoch_checkpoints", "average_last", "distributed_world_size", "eval_bleu_print_samples", "fp16", "bf16")
_FREE += ("reset_optimizer", "reset_lr_scheduler", "reset_dataloader", "reset_meters")


def train(args: Settings, config: TransformerConfig, computing: Computing) -> None:
    """Train a model, or go on with a run, and leave its files in `--save-dir`.

    All that can be wrong with the flags and data is found before anything is written.

    Raises:
        UserError: for a mistake of the user's.
        RunError: if the loss is not finite.
    """
    request = "" if args.overwrite and args.resume == "auto" else args.resume
    with Run.open(args.save_dir, args, computing, (LAST, *FILES), request=request, free=_FREE) as run:
        data = load_data(args)
        if config.share_all_embeddings and data.dictionaries[0].identity() != data.dictionaries[1].identity():
            raise UserError("--share-all-embeddings needs one dictionary for both languages: preprocess.py's with "
                            "--joined-dictionary")  # fmt: skip
        if args.target_ratio:
            with mistakes():
                config = scale_for_ratio(config, args.target_ratio, *map(len, data.dictionaries))
        model = computing.place(build_model(config, *map(len, data.dictionaries)))
        feed = Feed(args, config, data, computing)
        settled, budget = optimization.settle(args, schedule.rates(args, feed.updates_per_epoch))
        steps = optimization.build(settled, model)
        options = {"smoothing": args.label_smoothing, "clip_norm": args.clip_norm, "seed": args.seed}
        trainer = Trainer(model, steps, schedule.build(args), computing, **options)
        begun = run.source or args.finetune_from_model
        restore(run, begun, trainer, feed)
        training = Training(run, feed, trainer, budget)
        if run.source and not is_in(run.source, run.folder) and training.is_over():
            raise UserError(f"{begun} has {trainer.updates} updates: with these flags there is nothing left to train")
        training.open()
        for line in story.beginning(training, steps.description, begun):
            run.record.line(line)
        training.go()


def restore(run: Run, begun: Path | None, trainer: Trainer, feed: Feed) -> None:
    """Restore the checkpoint `begun`, all of it if the run goes on from it; try the first update of a new run.

    Raises:
        UserError: if it cannot be used.
    """
    args, data = run.args, feed.data
    if begun:
        loaded = translation_checkpoint.load(begun, trainer.computing.device)
        with checkpoint.as_damage(begun):
            translation_checkpoint.check_data(loaded, data.languages, data.dictionaries, begun)
            checkpoint.load_weights(trainer.model, loaded, begun)
            translation_checkpoint.check_config(loaded, trainer.model.config, begun)
    if run.source:
        with checkpoint.as_damage(run.source):
            translation_checkpoint.check_run(loaded, args, run.source)
            trainer.load_state_dict(loaded, run.source)
            run.state = loaded
    else:
        update = next(feed.updates(feed.batches(1), 0))
        trainer.rehearse(update.share, **update.counts)


class Training:
    """A run in progress; `open` it before it goes.

    Args:
        run: its folder, with the state of the checkpoint that it goes on from.
        budget: of decay (`optimization.settle`).

    Attributes:
        epoch: present one, counted from 1.
        offset: batches of it that are done.
        best: the best epoch: its number, `loss`, `nll_loss` and, where there is one, `bleu`. Empty before the first.
        waiting: validations since that.
        keeper: decides on checkpoints beside the last.
        metrics: diagnostics of the present epoch.
    """

    def __init__(self, run: Run, feed: Feed, trainer: Trainer, budget: float | None = None):
        args, state = run.args, run.state
        self.run, self.args, self.feed, self.trainer = run, args, feed, trainer
        self.computing, self.data, self.config = trainer.computing, feed.data, trainer.model.config
        self.validate = Validation(args, feed, trainer)
        self.epoch, self.offset = state.get("epoch", 1), state.get("offset", 0)
        self.best: dict = state.get("best", {})
        self.waiting: int = state.get("waiting", 0)
        self.keeper = Keeper(args, state.get("keeper", {}))
        self.metrics: dict = state.get("metrics", {})
        self.budget = budget

    def open(self) -> None:
        """Let the run begin to write."""
        form = self.computing.on_main(lambda: form_of(self.args))  # all processes take part in what a line needs
        epochs, updates = self.args.epochs, self.args.max_update
        limits = [epochs * self.feed.updates_per_epoch] if epochs else []
        self._total = total = min([*limits, *([updates] if updates else [])], default=None)
        self.record = self.run.begin()
        done = self.trainer.updates
        self.log = Log(self.record, form, self.args.log_interval, epochs=epochs, updates=total, done=done)

    # -- training ----------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Train to the end and write the results."""
        valid = None
        while not self.is_over():
            valid = self._train_epoch()
        self.log.close()
        if self.args.average_last and self.computing.is_main:
            finished = self.epoch if self.offset else self.epoch - 1  # later ones are of a part that was not continued
            paths = last_epochs(self.run.folder, self.args.average_last, finished) or [self.run.folder / LAST]
            self.run.save({AVERAGE: translation_checkpoint.average(paths)})
            self.record.line(f"| {AVERAGE}: mean of {', '.join(path.name for path in paths)}")
        self._finish(valid or self.validate())

    def is_over(self) -> bool:
        """Tell whether the run has done all that the flags ask for."""
        args, trainer = self.args, self.trainer
        slow = trainer.updates and trainer.lr <= args.min_lr and not trainer.schedule.is_under_way(trainer.updates)
        done = 0 < args.max_update <= trainer.updates or 0 < args.epochs < self.epoch
        return bool(done or slow or 0 < args.patience <= self.waiting)

    def _train_epoch(self) -> dict[str, Loss] | None:
        """Train to the end of the epoch or of the run; return the losses if this ended with a validation."""
        trainer, epoch = self.trainer, self.epoch
        batches = self.feed.batches(epoch)
        if not self.offset:
            trainer.meter = Meter(self.computing)
            self.metrics = {} if self.args.no_diagnostics else norms_of_products(trainer.model)
            self.metrics["hyper/lr"] = trainer.lr
        self._make_updates(batches)
        averages = self._averages()
        self.log.after(epoch, averages)

        valid = self.validate() if epoch % self.args.validate_interval == 0 else None
        if self.offset == len(batches):
            trainer.schedule.after_epoch(epoch, next(iter(valid.values())).loss if valid else None)
            self.epoch, self.offset = epoch + 1, 0
        if valid is None and self.is_over():
            valid = self.validate()

        scalars = self.metrics | {f"train/{name}": averages[name] for name in ("loss", "nll_loss", "accuracy")}
        for subset, loss in (valid or {}).items():
            scalars |= {f"{subset}/{name}": value for name, value in loss.values().items() if name != "ppl"}
            values = {f"valid_{name}": value for name, value in loss.values().items()}
            self.log.after(epoch, {**values, "num_updates": trainer.updates}, subset)
        self.record.scalars(scalars, epoch)
        if valid:
            self._keep(epoch, next(iter(valid.values())))
        return valid

    def _make_updates(self, batches: list) -> None:
        """Train on the rest of the epoch's `batches`, or until the run has as many updates as it shall."""
        trainer, epoch = self.trainer, self.epoch
        for update in self.log.follow(self.feed.updates(batches, self.offset), epoch):
            done, made = self.offset, trainer.updates
            trainer.step(update.share, **update.counts)
            self.offset = update.end
            if self._total:
                self.record.progress(trainer.updates, self._total, "updates")
            if trainer.updates == made:  # its batches did not fit into memory
                continue
            if self.log.wants(done, update.end):
                self.log.within(epoch, update.end, len(batches), self._averages())
            if self.keeper.wants(trainer.updates):
                trainer.meter.read(f"epoch {epoch}")  # no checkpoint of a run that has gone wrong
                self._save(*self.keeper.within_epoch(epoch, update.end))
            if trainer.updates == self.args.max_update:
                return

    def _averages(self) -> dict[str, float]:
        averages = self.trainer.meter.read(f"epoch {self.epoch}")
        return {**averages, "num_updates": self.trainer.updates, "lr": self.trainer.lr}

    # -- files -------------------------------------------------------------------------------------------------------

    def _keep(self, epoch: int, valid: Loss) -> None:
        """Save what an epoch has led to."""
        metric = self.args.best_checkpoint_metric
        is_best = not self.best or METRICS[metric](valid) < METRICS[metric](Loss.of(self.best))
        self.waiting = 0 if is_best else self.waiting + 1
        if is_best:
            self.best = {"epoch": epoch, **valid.values()}
            del self.best["ppl"]
        self._save(*self.keeper.after_epoch(epoch, is_best))

    def _save(self, names: list[str], outdated: list[str]) -> None:
        """Write the last checkpoint and those of the given names, and remove the outdated ones."""
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
            "waiting": self.waiting,
            "keeper": self.keeper.state_dict(),
            "metrics": self.metrics,
            "seconds": self.record.seconds,
        }
        self.run.save({**dict.fromkeys(names, state), LAST: state}, outdated)

    # -- results -----------------------------------------------------------------------------------------------------

    def parameter_counts(self) -> tuple[int, int]:
        """Return the number of parameters of the dense model, and of this one."""
        original = dense_parameter_count(self.config, *map(len, self.data.dictionaries))
        return original, sum(p.numel() for p in self.trainer.model.parameters())

    def _finish(self, valid: dict[str, Loss]) -> None:
        original, parameters = self.parameter_counts()
        args, subset, final = self.args, *next(iter(valid.items()))
        best = self.best.get("nll_loss", final.nll)
        bleu = {"final validation BLEU": final.bleu, "best validation BLEU": self.best.get("bleu", final.bleu)}
        results = {
            "final validation loss": final.nll,
            "best validation loss": best,
            **(bleu if final.bleu is not None else {}),
            "best epoch": self.best.get("epoch", self.epoch),
            "updates": self.trainer.updates,
            "original parameter count": original,
            "compressed parameter count": parameters,
            "compression ratio": parameters / original,
        }
        summary = Summary(
            study="Transformer-PyTorch", network=args.arch, data=str(args.data), method=self.method,
            metric="validation loss (bits a token)", best=best, final=final.nll,
            epochs=self.epoch if self.offset else self.epoch - 1, seed=args.seed, rank_scale=self.config.rank_scale,
            parameters=parameters, dense_parameters=original, decay_budget=self.budget,
            validation=f"the {len(self.data.valid[subset])} sentences of {subset}",
        )  # fmt: skip
        self.run.finish(summary, results, story.ending(self, final))

    @property
    def method(self) -> str:
        """Whether the model is low-rank, and which parts start and are decayed otherwise, as flags."""
        kinds = {"--spectral": "spectral", "--wd2fd": "wd2fd"}
        kinds |= {f"{flag}-{kind}": f"{name}_{kind}" for flag, name in kinds.items() for kind in ("quekey", "outval")}
        flags = [flag for flag, name in kinds.items() if getattr(self.args, name)]
        return " ".join(["low-rank" if self.config.rank_scale else "dense", *flags])
