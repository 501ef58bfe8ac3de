"""Losses, and their sums over an epoch."""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from lab.cli import RunError
from lab.devices import Computing


class Loss(NamedTuple):
    """How well a model does on some data: averages over target tokens, in bits, and perhaps BLEU."""

    loss: float
    """The objective, which has label smoothing in it."""
    nll: float
    """The negative log-likelihood."""
    bleu: float | None = None
    """BLEU of the translations, 0 to 100, if there are any."""
    accuracy: float | None = None
    """Share of target tokens, in percent, that no symbol is likelier than."""

    @classmethod
    def of(cls, values: dict) -> "Loss":
        """Return what has these `values`."""
        return cls(values["loss"], values["nll_loss"], values.get("bleu"), values.get("accuracy"))

    def values(self) -> dict[str, float]:
        """Return all that is known by the names under which it is logged."""
        more = {"accuracy": self.accuracy, "bleu": self.bleu}
        values = {"loss": self.loss, "nll_loss": self.nll, "ppl": self.perplexity}
        return values | {name: value for name, value in more.items() if value is not None}

    @property
    def perplexity(self) -> float:
        """`2^nll`."""
        return 2**self.nll if self.nll < 1000 else math.inf


class Meter:
    """Sums over the updates of an epoch. Those that are computed stay on the device until they are read."""

    def __init__(self, computing: Computing):
        self.computing = computing
        # Loss, negative log-likelihood and batches skipped, of this process; gradient norm and clipped updates, of all;
        # tokens guessed right, of this process.
        self.sums = torch.zeros(6, dtype=torch.float64, device=computing.device)
        self.counts = {"updates": 0, "tokens": 0, "sentences": 0, "samples": 0}  # of all processes
        self._start: tuple[float, dict[str, int]] | None = None

    def add(self, sums: Tensor, **counts: int) -> None:
        """Add what an update leads to."""
        self.sums += sums
        counts["updates"] = 1
        self.counts = {name: count + counts[name] for name, count in self.counts.items()}
        if self._start is None:  # the first update is slow and does not count for rates
            self._start = time.perf_counter(), self.counts

    def read(self, place: str) -> dict[str, float]:
        """Return averages by the names under which they are logged.

        Raises:
            RunError: if one is not finite.
        """
        loss, nll, skipped, norm, clipped, right = self._total().tolist()
        updates, tokens, sentences, samples = (max(count, 1) for count in self.counts.values())
        loss, nll, norm = loss / samples / math.log(2), nll / tokens / math.log(2), norm / updates
        check_finite(f"loss in {place}", loss)
        check_finite(f"gradient in {place}", norm)
        started, before = self._start or (time.perf_counter(), self.counts)
        seconds = max(time.perf_counter() - started, 1e-9)
        return {
            "loss": loss,
            "nll_loss": nll,
            "ppl": Loss(loss, nll).perplexity,
            "accuracy": 100 * right / tokens,
            "wps": (self.counts["tokens"] - before["tokens"]) / seconds,
            "ups": (self.counts["updates"] - before["updates"]) / seconds,
            "wpb": tokens / updates,
            "bsz": sentences / updates,
            "gnorm": norm,
            "clip": 100 * clipped / updates,
            "oom": skipped,
            "sample_size": samples / updates,
        }

    def _total(self) -> Tensor:
        total = self.computing.sum(self.sums.clone())
        total[3:5] /= self.computing.world_size
        return total

    def state_dict(self) -> dict:
        """Return the sums over all processes, as plain values."""
        return {"sums": self._total().tolist(), "counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`."""
        sums = torch.zeros_like(self.sums)
        sums[: len(state["sums"])] = sums.new_tensor(state["sums"])  # once there were five
        if not self.computing.is_main:
            sums[:3] = sums[5] = 0
        self.sums, self.counts = sums, dict(state["counts"])


def check_finite(what: str, value: float) -> None:
    """Raise RunError if `value` is not finite; `what` begins the message."""
    if not math.isfinite(value):
        raise RunError(f"the {what} is {value}; stopped, the last checkpoint is as it was")
