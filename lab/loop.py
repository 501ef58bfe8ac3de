"""The training and evaluation loop of the image experiments. What it shows counts epochs and batches from 1."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from .cli import RunError
from .data.batches import Batches
from .devices import Computing
from .record import Record, progress

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


class Averages(NamedTuple):
    """Averages over one pass, weighted by images."""

    loss: float
    top1: float
    """The accuracy in percent."""
    top5: float
    """The share of images whose class is among the five most likely, in percent."""


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of a batch and the logits (batch, classes)."""
    logits = model(images)
    return F.cross_entropy(logits, labels), logits


@dataclass
class Classifier:
    """A network with what it takes to train it by one step after another.

    Attributes:
        model: the network as it is called (`Computing.wrap`).
        objective: gets the network, images and labels; returns a mean loss and logits.
        after_step: called with (epoch, iteration) after every optimizer step.
        read_every: the running loss is read from the device after the first step and then every so many, for the
            progress bar and to stop at a loss that is not finite.
        bar: of the whole run, while `fit` is at work.
        tell: called with the number of epochs that are done whenever the loss is read, while `fit` is at work.
    """

    model: nn.Module
    optimizer: Optimizer
    computing: Computing
    objective: Objective = cross_entropy
    after_step: Callable[[int, int], None] | None = None
    read_every: int = 50
    bar: tqdm | None = field(default=None, repr=False)
    tell: Callable[[float], None] | None = field(default=None, repr=False)

    def train_epoch(self, batches: Batches, epoch: int) -> Averages:
        """Train for one pass and return the averages, measured in training mode as it goes.

        Args:
            epoch: index, from 0.

        Raises:
            RunError: if the loss is not finite.
        """
        self.model.train()
        totals = torch.zeros(4, device=self.computing.device)
        for iteration, (images, labels) in enumerate(batches.epoch(epoch)):
            with self.computing.autocast():
                loss, logits = self.objective(self.model, images, labels)
            self.optimizer.zero_grad(set_to_none=True)
            scaler = self.computing.scaler
            scaler.scale(loss * batches.weight(iteration)).backward()
            scaler.step(self.optimizer)
            scaler.update()
            totals += _sums(loss.detach(), logits.detach(), labels)
            if self.after_step:
                self.after_step(epoch, iteration)
            if iteration == 0 or (iteration + 1) % self.read_every == 0:
                averages = _finite(_averages(totals), f"epoch {epoch + 1}, batch {iteration + 1}")
                self._show(averages)
                if self.tell:
                    self.tell(epoch + (iteration + 1) / len(batches))
            if self.bar is not None:
                self.bar.update(min(batches.batch_size, len(batches.data) - iteration * batches.batch_size))
        return _finite(_averages(self.computing.sum(totals)), f"epoch {epoch + 1}")

    def _show(self, averages: Averages) -> None:
        if self.bar is not None:
            rate = self.optimizer.param_groups[0]["lr"]
            shown = {"loss": f"{averages.loss:.3f}", "accuracy": f"{averages.top1:.1f}%", "lr": f"{rate:g}"}
            self.bar.set_postfix(shown, refresh=False)

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> Averages:
        """Return the averages over one pass in evaluation mode."""
        self.model.eval()
        totals = torch.zeros(4, device=self.computing.device)
        shown = self.computing.is_main and self.bar is None
        for images, labels in progress(batches.epoch(0), len(batches), "evaluating", shown):
            with self.computing.autocast():
                loss, logits = self.objective(self.model, images, labels)
            totals += _sums(loss, logits, labels)
        return _averages(self.computing.sum(totals))


@dataclass(frozen=True)
class Epoch:
    """What one epoch led to."""

    index: int
    """The index of the epoch, from 0."""
    train: Averages
    valid: Averages
    best: float
    """The highest validation accuracy so far, in percent."""
    best_epoch: int | None
    """The epoch that it was reached in, from 1; None if that is not known."""
    is_best: bool

    def scalars(self, rate: float) -> dict[str, float]:
        """Return losses, accuracies and the learning rate of the epoch by the TensorBoard tags of all studies."""
        parts = {"train": self.train, "valid": self.valid}
        tags = {f"{part}/{tag}": v for part, a in parts.items() for tag, v in (("loss", a.loss), ("accuracy", a.top1))}
        return {**tags, "hyper/lr": rate}


def fit(
    classifier: Classifier,
    train: Batches,
    valid: Batches,
    record: Record,
    *,
    epochs: int,
    learning_rate: Callable[[int], float],
    first_epoch: int = 0,
    best: float = 0.0,
    best_epoch: int | None = None,
    before_epoch: Callable[[int], None] | None = None,
    after_epoch: Callable[[Epoch], None] | None = None,
) -> Epoch | None:
    """Train from `first_epoch` up to `epochs`, and return the last epoch, or None if there was none to train.

    One bar shows the images of all epochs, their rate, and the time left of the run, validation included.

    Args:
        best, best_epoch: of the epochs before `first_epoch`.
        learning_rate: rate of every epoch, by its index. A function of the index alone, so that a continued run is on
            the same schedule.
        before_epoch: called with the index once the rate is set, before training.
        after_epoch: called with the averages, to log and save; never reached with a loss that is not finite.

    Raises:
        RunError: if a loss is not finite.
    """
    last = None

    def tell(done: float) -> None:
        record.progress(done, epochs, "epochs")

    with _bar_of_run(classifier, len(train.data), first_epoch, epochs) as bar:
        classifier.tell = tell
        for index in range(first_epoch, epochs):
            bar.set_description(f"epoch {index + 1} of {epochs}")
            for group in classifier.optimizer.param_groups:
                group["lr"] = learning_rate(index)
            if before_epoch:
                before_epoch(index)
            started = time.perf_counter()
            trained = classifier.train_epoch(train, index)
            seconds = time.perf_counter() - started  # whatever the device does, reading the averages has waited for it
            validated = _finite(classifier.evaluate(valid), f"validation after epoch {index + 1}")
            is_best = index == 0 or validated.top1 > best
            best = max(best, validated.top1)
            best_epoch = index + 1 if is_best else best_epoch
            record.line(
                f"epoch {index + 1}/{epochs}  train loss {trained.loss:.4f} accuracy {trained.top1:.2f}%  "
                f"valid loss {validated.loss:.4f} accuracy {validated.top1:.2f}%  best {best:.2f}%  "
                f"{time.perf_counter() - started:.1f} s, {len(train.data) / seconds:,.0f} images/s"
            )
            last = Epoch(index, trained, validated, best, best_epoch, is_best)
            tell(index + 1)
            if after_epoch:
                after_epoch(last)
    return last


@contextlib.contextmanager
def _bar_of_run(classifier: Classifier, images: int, first_epoch: int, epochs: int) -> Iterator[tqdm]:
    total, done = images * epochs, images * first_epoch
    shown = classifier.computing.is_main
    with progress(None, total, "", shown, done, unit=" images", unit_scale=True) as bar:
        classifier.bar = bar
        try:
            yield bar
        finally:
            classifier.bar = classifier.tell = None


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return (loss summed over images, images right at the first guess, within five guesses, images)."""
    guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    count = labels.shape[0]
    loss = loss.float() * count if count else torch.zeros_like(loss)  # the mean over nothing is not a number
    return torch.stack([loss, guesses[:, 0].sum(), guesses.sum(), labels.new_tensor(count)])


def _averages(totals: Tensor) -> Averages:
    loss, first, five, count = totals.tolist()
    return Averages(loss / count, 100 * first / count, 100 * five / count) if count else Averages(math.nan, 0.0, 0.0)


def _finite(averages: Averages, where: str) -> Averages:
    if not math.isfinite(averages.loss):
        raise RunError(f"the loss is {averages.loss} in {where}; stopped, the last checkpoint is as it was")
    return averages
