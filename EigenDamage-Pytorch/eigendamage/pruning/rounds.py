"""A pruning run: removal and fine-tuning, round after round, in one folder, to be continued at any point."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import factorized
from lab import account, checkpoint, training
from lab.cli import UserError, mistakes
from lab.data.batches import Batches, generator
from lab.loop import Averages, Classifier, Epoch, fit
from lab.record import Summary, progress
from lab.run import Run
from lab.settings import plain

from .. import networks
from .counting import Cost, cost, rotations
from .pruned import Pruned
from .settings import Plan, Round
from .statistics import Moments, collect
from .step import Removed

CHECKPOINT, BEST, PRUNED, STATS = "checkpoint.t7", "best.t7", "pruned.t7", "stats.json"
FILES = (CHECKPOINT, BEST, PRUNED, "round[0-9]*.t7", STATS)
WHAT = {
    BEST: "is the best network of the last round", CHECKPOINT: "the last one, to go on from",
    PRUNED: "that of right after the last removal", "results.json": "the numbers",
}  # fmt: skip
MOMENTUM = 0.9
_LABELS, _SCORES, _START = 1, 2, 3  # what random numbers are for, in the keys of their generators

Cache = dict[tuple, Mapping[str, Moments]]
"""Statistics of networks that several runs of one call start from."""


@dataclass
class Rounds:
    """The rounds of a run, from where it begins or goes on to its end."""

    run: Run
    plan: Plan
    data: tuple[Batches, Batches, Batches]
    """The batches to train, validate and test on."""
    cache: Cache
    history: list[dict[str, Any]] = field(default_factory=list)
    """What every round removed and what came out."""
    pruned: Pruned = field(init=False)
    dense: Cost = field(init=False)
    begun: bool = False

    def __call__(self) -> None:
        """Prune and train, and leave the files of the run in its folder."""
        run, plan = self.run, self.plan
        train, valid, test = self.data
        classes = len(train.data.classes)
        whole = Pruned.dense(plan.start.network, plan.start.depth, classes)
        with _of_images(train):
            self.dense = cost(whole.model, train.image_size)
        state: dict[str, Any] = checkpoint.load(run.source) if run.source else {}
        if state:
            with checkpoint.as_damage(run.source):
                self.pruned = Pruned.rebuild(state["pruned"])
                self.history, index = list(state["history"]), int(state["round"])
                if not 0 <= index < len(plan.rounds):
                    raise ValueError(f"its round is {index}")
        else:
            self.pruned, index = plan.start.load(classes), 0
        self._place()
        for number in range(index, len(plan.rounds)):
            continued = bool(state) and number == index
            last = self._round(number, continued, state if continued else {})
        self._finish(last)

    def _place(self) -> None:
        self.pruned.model = self.run.computing.place(self.pruned.model)

    def _classifier(self, settings: Round) -> Classifier:
        optimizer = training.sgd(
            self.pruned.model, self.run.computing, lr=settings.lr, momentum=MOMENTUM,
            weight_decay=settings.weight_decay, exempt_factors=self.run.args.wd2fd, frobenius=self.run.args.wd2fd,
        )  # fmt: skip
        return Classifier(self.run.computing.wrap(self.pruned.model), optimizer, self.run.computing)

    # -- one round ---------------------------------------------------------------------------------------------------

    def _round(self, number: int, continued: bool, state: Mapping[str, Any]) -> Epoch | None:
        """Remove, unless that was done before the run was stopped, and fine-tune; return the last epoch if any."""
        run, settings = self.run, self.plan.rounds[number]
        first = sum(r.epochs for r in self.plan.rounds[:number])
        removed = None if continued else self._remove(number)
        classifier = self._classifier(settings)
        if continued:
            run.restore(self.pruned.model, classifier.optimizer)
        if not self.begun:
            self.begun = True
            if not continued:
                training.rehearse(run, self.pruned.model, classifier, self.data[0], settings.lr)
            run.begin()
            self._tell()
        if removed is not None:
            self._note_removal(number, removed, classifier, first)
        last = fit(
            classifier, self.data[0], self.data[1], run.record,
            epochs=first + settings.epochs,
            learning_rate=lambda epoch: settings.rate(epoch - first),
            first_epoch=state.get("epoch", first),
            best=state.get("best_acc", -1.0),
            best_epoch=state.get("best_epoch"),
            after_epoch=lambda epoch: self._save_epoch(epoch, number, classifier, first),
        )  # fmt: skip
        self._note_end(number, last, classifier, state)
        return last

    def _remove(self, number: int) -> Removed:
        """Take statistics of the network and remove from it what the round asks for."""
        plan, run = self.plan, self.run
        moments = self._statistics(number)
        generator_of_scores = generator(run.args.seed, _SCORES, number)
        with mistakes():
            removed = plan.pruner(
                self.pruned, moments, plan.rounds[number].target, self.dense, self.data[0].image_size,
                generator_of_scores,
            )  # fmt: skip
            if run.args.re_init:
                networks.initialize(self.pruned.model, generator(run.args.seed, _START, number))
        self._place()
        return removed

    def _statistics(self, number: int) -> Mapping[str, Moments]:
        plan, run = self.plan, self.run
        kinds = plan.pruner.kinds
        if not kinds:
            return {}
        args, device = run.args, run.computing.device
        key = (plan.start.path, plan.data, kinds, args.labels, args.samples, args.fix_layers, plan.batch_size)
        if number == 0 and key in self.cache:
            return self.cache[key]
        seed = int(torch.randint(2**62, (), generator=generator(args.seed, _LABELS, number, run.computing.rank)))
        labels = torch.Generator(device).manual_seed(seed) if args.labels == "sampled" else None
        found = collect(
            self.pruned.model, plan.pruner.layers(self.pruned), self._some_batches(number), kinds, generator=labels,
            add_up=run.computing.sum,
        )  # fmt: skip
        if number == 0:
            self.cache.clear()
            self.cache[key] = found
        return found

    def _some_batches(self, number: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the training images, augmented and in another order in every round, as far as they are asked for."""
        train, samples = self.data[0], self.run.args.samples
        count = len(train) if samples is None else min(len(train), -(-samples // train.batch_size))
        batches = itertools.islice(train.epoch(number), count)
        return progress(batches, count, "statistics", self.run.computing.is_main)

    # -- what is kept of it ------------------------------------------------------------------------------------------

    def _state(self, number: int, epoch: int, **more: Any) -> dict[str, Any]:
        common = {"epoch": epoch, "round": number, "pruned": self.pruned.describe(), "args": plain(self.run.args)}
        return {**common, "history": self.history, **more}

    def _save_all(self, number: int, epoch: int, classifier: Classifier, states: dict[str, object], **more) -> None:
        run = self.run
        progress = self._state(number, epoch, seconds=run.record.seconds, **more)
        whole = checkpoint.training_state(
            self.pruned.model, classifier.optimizer, run.computing, weights="net", **progress
        )
        run.save({**states, CHECKPOINT: whole})

    def _note_removal(self, number: int, removed: Removed, classifier: Classifier, first: int) -> None:
        """Measure what the removal left, before and after batch normalization has new statistics, and save that."""
        run, target = self.run, self.plan.rounds[number].target
        before = classifier.evaluate(self.data[2])
        self._renew_norms(number)
        after = self._measure(classifier)
        parameters, adds = removed.cost
        share = parameters / self.dense.parameters
        self.history.append({
            "target": {"share": target.share, "of": target.kind}, "limit": removed.limit,
            "units": removed.of, "units removed": removed.units,
            "parameters": parameters, "ratio": share,
            "multiply-adds": adds, "multiply-adds ratio": adds / self.dense.multiply_adds,
            "of rotations": rotations(self.pruned.model, self.data[0].image_size)._asdict(),
            "test accuracy before batch norm is renewed": before.top1, "after removal": after,
        })  # fmt: skip
        run.record.line(
            f"round {number + 1} of {len(self.plan.rounds)}: {removed.units:,} of {removed.of:,} units removed; "
            f"{parameters:,} of {self.dense.parameters:,} parameters are left ({share:.6f}) "
            f"and {adds / self.dense.multiply_adds:.4f} of the multiply-adds; test accuracy {before.top1:.2f}%, "
            f"with new batch norm statistics {after['test accuracy']:.2f}%"
        )
        net = {"net": self.pruned.model.state_dict(), **self._state(number, first)}
        self._save_all(number, first, classifier, {PRUNED: net})

    def _renew_norms(self, number: int) -> None:
        """Let batch normalization have the statistics of what reaches it now."""
        computing = self.run.computing
        factorized.recalibrate(self.pruned.model, (images for images, _ in self.data[0].epoch(number) if len(images)))
        for module in self.pruned.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for statistics in (module.running_mean, module.running_var):
                    computing.sum(statistics).div_(computing.world_size)

    def _save_epoch(self, epoch: Epoch, number: int, classifier: Classifier, first: int) -> None:
        run, settings = self.run, self.plan.rounds[number]
        done = epoch.index + 1
        run.record.scalars(epoch.scalars(settings.rate(epoch.index - first)), epoch.index)
        own = {"best_acc": epoch.best}
        states: dict[str, object] = {}
        if epoch.is_best:
            states[BEST] = {"net": self.pruned.model.state_dict(), **self._state(number, done, **own)}
        self._save_all(number, done, classifier, states, **own, best_epoch=epoch.best_epoch)

    def _note_end(self, number: int, last: Epoch | None, classifier: Classifier, state: Mapping[str, Any]) -> None:
        entry = self.history[number]
        entry["after fine-tuning"] = self._measure(classifier)
        valid = last.valid.top1 if last else entry["after fine-tuning"]["validation accuracy"]
        entry["best validation accuracy"] = last.best if last else max(valid, state.get("best_acc", -1.0))
        epoch = sum(r.epochs for r in self.plan.rounds[: number + 1])
        name = f"round{number + 1}.t7"
        self.run.save({name: {"net": self.pruned.model.state_dict(), **self._state(number, epoch)}})
        if self.run.computing.is_main:
            checkpoint.save_json(self.run.folder / STATS, self._published_stats())

    def _measure(self, classifier: Classifier) -> dict[str, float]:
        """Return losses and accuracies on the training images as they are, and on those to validate and test on."""
        train, valid, test = self.data
        clean = train.as_they_are(test.batch_size)
        parts: dict[str, Averages] = {"training": classifier.evaluate(clean), "test": classifier.evaluate(test)}
        parts["validation"] = parts["test"] if valid.data is test.data else classifier.evaluate(valid)
        values = {"loss": lambda a: a.loss, "accuracy": lambda a: a.top1}
        return {f"{part} {word}": get(a) for part, a in parts.items() for word, get in values.items()}

    def _published_stats(self) -> dict[str, dict[str, float]]:
        """Return the rounds by number under the published keys; a multiply-add counts as two operations."""
        found = {}
        for number, entry in enumerate(self.history):
            rotating, whole = Cost(**entry["of rotations"]), self.dense.parameters
            found[str(number)] = {
                "it": number, "prune_ratio": entry["target"]["share"], "all_params": entry["parameters"],
                "rotation_params": rotating.parameters, "cr": 100 - 100 * entry["ratio"],
                "unfair_cr": 100 - 100 * (entry["parameters"] - rotating.parameters) / whole,
                "total_flops": 2 * entry["multiply-adds"], "rotation_flops": 2 * rotating.multiply_adds,
            }  # fmt: skip
            for stage, key in (("prune", "after removal"), ("finetune", "after fine-tuning")):
                for part, word in (("train", "training"), ("test", "test")):
                    for short, long in (("loss", "loss"), ("acc", "accuracy")):
                        if key in entry:
                            found[str(number)][f"{stage}/{part}_{short}"] = entry[key][f"{word} {long}"]
        return found

    # -- what is said ------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        run, plan = self.run, self.plan
        train, valid, test = self.data
        height, width = train.image_size
        run.record.line(
            f"data: {plan.data}, {len(train.data):,} training images and {len(test.data):,} test images of {width} x "
            f"{height} pixels; validated on {account.validation(valid, test)}"
        )
        run.record.line(
            f"network: {plan.start.network}{plan.start.depth} of {plan.start.path}, trained for {plan.start.epochs} "
            f"epochs, {self.dense.parameters:,} parameters when dense; on {run.computing.device}"
        )
        ends = plan.rounds[-1].target
        kind = "of the scores in every round" if ends.kind == "scores" else f"of the {ends.kind} left at the end"
        rounds = "1 round" if len(plan.rounds) == 1 else f"{len(plan.rounds)} rounds"
        run.record.line(
            f"pruning: {plan.pruner.method} in {rounds}, {ends.share:g} {kind}; {plan.epochs} epochs of fine-tuning in "
            f"all; run in {run.folder}, seed {run.args.seed}"
        )

    def _finish(self, last: Epoch | None) -> None:
        run, plan, entry = self.run, self.plan, self.history[-1]
        end = entry["after fine-tuning"]
        parameters = factorized.parameter_count(self.pruned.model)
        summary = Summary(
            study="EigenDamage-Pytorch", network=f"{plan.start.network}{plan.start.depth}", data=plan.data,
            method=method_in_words(plan, run.args), metric="validation accuracy (%)",
            best=entry["best validation accuracy"], final=end["validation accuracy"], epochs=plan.epochs,
            seed=run.args.seed, rank_scale=0.0, parameters=parameters, dense_parameters=self.dense.parameters,
            decay_budget=None, validation=account.validation(*self.data[1:]),
        )  # fmt: skip
        results = {
            "final validation accuracy": end["validation accuracy"],
            "best validation accuracy": entry["best validation accuracy"],
            "final test accuracy": end["test accuracy"],
            "original parameter count": self.dense.parameters,
            "compressed parameter count": parameters,
            "compression ratio": parameters / self.dense.parameters,
            "multiply-adds": entry["multiply-adds"],
            "dense multiply-adds": self.dense.multiply_adds,
            "epochs of the dense network": plan.start.epochs,
            "rounds": self.history,
        }
        removal = entry["after removal"]["test accuracy"]
        files = {name: what for name, what in WHAT.items() if name != BEST or plan.rounds[-1].epochs}
        lines = [
            f"test accuracy {removal:.2f}% after removal, {end['test accuracy']:.2f}% after fine-tuning, with "
            f"{parameters:,} parameters, {parameters / self.dense.parameters:.6f} of the dense network's"
        ]
        run.finish(summary, results, [*lines, *account.ending(run, last, files)])


def method_in_words(plan: Plan, args: Any) -> str:
    """Return the method with what differs from its usual form."""
    pruner = plan.pruner
    unusual = {
        "fixed rotations": pruner.fixed_rotations,
        "published scores": pruner.scoring.published,
        f"{pruner.scoring.correction} correction": pruner.scoring.correction != "joint" and not args.re_init,
        "normalized scores": pruner.normalize,
        "labels as given": args.labels == "given",
        f"{len(plan.rounds)} rounds": len(plan.rounds) > 1,
        "trained anew": args.re_init,
    }
    words = [f"pruned: {pruner.method}", *(word for word, is_so in unusual.items() if is_so)]
    decays = any(settings.weight_decay for settings in plan.rounds)
    return ", ".join([*words, f"{'Frobenius' if args.wd2fd else 'L2'} decay" if decays else "no decay"])


@contextlib.contextmanager
def _of_images(batches: Batches) -> Iterator[None]:
    """Say of errors in a forward pass that the images are too small for the network."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        height, width = batches.image_size
        raise UserError(
            f"this network leaves nothing of images of {width} x {height} pixels; use larger images"
        ) from None
