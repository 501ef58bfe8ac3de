"""Learning-rate schedules: the rate of the next update, from the numbers of updates and epochs made so far.

What depends on the losses as well is the schedule's state. To go on with a run, load that state and report the last
update and the last finished epoch once more.
"""

import argparse
from collections.abc import Sequence


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

    def is_warming_up(self, updates: int) -> bool:
        """Tell whether the rate is still on its way up, so that a small one is no reason to stop."""
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
        if self.is_warming_up(updates):
            self.rate = self.start + updates * (self.peak - self.start) / self.warmup
        else:
            self.rate = self.peak * (max(self.warmup, 1) / updates) ** 0.5

    def is_warming_up(self, updates: int) -> bool:
        return updates < self.warmup


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


SCHEDULES = {
    "fixed": lambda args: Fixed(args.lr, args.force_anneal, args.lr_shrink),
    "inverse_sqrt": lambda args: InverseSquareRoot(args.lr[0], args.warmup_updates, args.warmup_init_lr),
    "reduce_lr_on_plateau": lambda args: ReduceOnPlateau(args.lr[0], args.lr_shrink),
}


def build(args: argparse.Namespace) -> Schedule:
    """Return the schedule that the flags of `train.py` ask for."""
    return SCHEDULES[args.lr_scheduler](args)
