"""Learning-rate schedules: the rate of the next update, from the numbers of updates and epochs made so far.

What depends on the losses as well is the schedule's state. To go on with a run, load that state and report the last
update and the last finished epoch once more.
"""

import math
from collections.abc import Callable, Sequence

from lab.settings import Settings


class Schedule:
    """A constant rate; the others change it.

    Attributes:
        rate: of the next update.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def after_update(self, updates: int) -> None:
        """Set the rate once `updates` updates have been made."""

    def after_epoch(self, epoch: int, loss: float | None) -> None:
        """Set the rate after an epoch, counted from 1, and its validation loss, None if there was no validation."""

    def is_under_way(self, updates: int) -> bool:
        """Tell whether the rate is on its way to where it is meant to get, so that a small one is no reason to stop."""
        return False

    def state_dict(self) -> dict:
        """Return the state, plain values."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` returned."""
        vars(self).update(state)


class InverseSquareRoot(Schedule):
    """Linear warm-up from `start` to `peak` over `warmup` updates, then `peak * sqrt(warmup / updates)`.

    Without warm-up the rate is `peak / sqrt(updates)` from the first update on.

    Args:
        peak: highest rate.
        warmup: number of updates, 0 for none.
        start: rate of the first update of a warm-up; negative means `peak`.
    """

    def __init__(self, peak: float, warmup: int, start: float = -1.0):
        self.peak, self.warmup, self.start = peak, warmup, peak if start < 0 else start
        super().__init__(self.start if warmup else peak)

    def after_update(self, updates: int) -> None:
        if self.is_under_way(updates):
            self.rate = self.start + updates * (self.peak - self.start) / self.warmup
        else:
            self.rate = self.peak * (max(self.warmup, 1) / updates) ** 0.5

    def is_under_way(self, updates: int) -> bool:
        return updates < self.warmup


class Decay(Schedule):
    """Linear warm-up to `peak` over `warmup` updates, then down to `end` at update `total` along a curve.

    Args:
        peak: highest rate.
        total: number of updates.
        curve: maps the share of the way that is left, from 1 to 0, to that of the height, from 1 to 0.
        warmup: number of updates, 0 for none.
        end: last rate, which is kept.
    """

    def __init__(self, peak: float, total: int, curve: Callable[[float], float], warmup: int = 0, end: float = 0.0):
        self.peak, self.total, self.curve, self.warmup, self.end = peak, total, curve, warmup, end
        super().__init__(peak)
        self.after_update(0)

    def after_update(self, updates: int) -> None:
        if updates < self.warmup:  # of the next update, so that none has the rate 0
            self.rate = self.peak * (updates + 1) / (self.warmup + 1)
        else:
            left = max(self.total - updates, 0) / (self.total - self.warmup)
            self.rate = self.end + (self.peak - self.end) * self.curve(left)

    def is_under_way(self, updates: int) -> bool:
        return updates < self.total


def cosine(peak: float, total: int, warmup: int = 0, end: float = 0.0) -> Decay:
    """Return the schedule `end + (peak - end) (1 + cos(pi x)) / 2`, x from 0 to 1 between warm-up and `total`."""
    return Decay(peak, total, _half_wave, warmup, end)


def polynomial(peak: float, total: int, warmup: int = 0, end: float = 0.0, power: float = 1.0) -> Decay:
    """Return the schedule `end + (peak - end) (1 - x)^power`, x from 0 to 1 between warm-up and `total`."""
    return Decay(peak, total, lambda left: left**power, warmup, end)


def _half_wave(left: float) -> float:
    return (1 - math.cos(math.pi * left)) / 2


class Fixed(Schedule):
    """A rate for every epoch; the last is kept, or multiplied by `shrink` after each epoch from number `anneal` on."""

    def __init__(self, rates: Sequence[float], anneal: int | None = None, shrink: float = 0.1):
        super().__init__(rates[0])
        self.rates, self.anneal, self.shrink = list(rates), anneal, shrink

    def after_epoch(self, epoch: int, loss: float | None) -> None:
        if self.anneal is None or epoch < self.anneal:
            self.rate = self.rates[min(epoch, len(self.rates) - 1)]
        else:
            self.rate = self.rates[-1] * self.shrink ** (epoch + 1 - self.anneal)


class ReduceOnPlateau(Schedule):
    """Multiplies the rate by `shrink` whenever the validation loss is not lower than ever before."""

    def __init__(self, rate: float, shrink: float = 0.1):
        super().__init__(rate)
        self.shrink, self.best = shrink, float("inf")

    def after_epoch(self, epoch: int, loss: float | None) -> None:
        if loss is None:
            return
        if loss < self.best:
            self.best = loss
        else:
            self.rate *= self.shrink

    def state_dict(self) -> dict:
        return {"rate": self.rate, "best": self.best}


def _end(args: Settings) -> tuple[float, int, int, float]:
    return args.lr[0], args.total_num_update or args.max_update, args.warmup_updates, args.end_learning_rate


SCHEDULES = {
    "cosine": lambda args: cosine(*_end(args)),
    "fixed": lambda args: Fixed(args.lr, args.force_anneal, args.lr_shrink),
    "inverse_sqrt": lambda args: InverseSquareRoot(args.lr[0], args.warmup_updates, args.warmup_init_lr),
    "polynomial_decay": lambda args: polynomial(*_end(args), args.power),
    "reduce_lr_on_plateau": lambda args: ReduceOnPlateau(args.lr[0], args.lr_shrink),
}


def rates(args: Settings, updates_per_epoch: int) -> list[float] | None:
    """Return the rate of every update of the run that the flags of `train.py` ask for.

    None where nobody knows: the rates depend on the losses, or the run has no limit.
    """
    limits = [args.epochs * updates_per_epoch] * bool(args.epochs) + [args.max_update] * bool(args.max_update)
    if args.lr_scheduler == "reduce_lr_on_plateau" or not limits:
        return None
    schedule, found = build(args), []
    for update in range(1, min(limits) + 1):
        if found and schedule.rate <= args.min_lr and not schedule.is_under_way(update - 1):
            break  # where training stops
        found.append(schedule.rate)
        schedule.after_update(update)
        if update % updates_per_epoch == 0:
            schedule.after_epoch(update // updates_per_epoch, None)
    return found


def build(args: Settings) -> Schedule:
    """Return the schedule that the flags of `train.py` ask for."""
    return SCHEDULES[args.lr_scheduler](args)
