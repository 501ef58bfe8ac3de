"""What training prints: a progress bar, or lines that people or programs read."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lab.record import Record, progress
from lab.settings import Settings

Item = TypeVar("Item")

_DECIMALS = {"loss": 3, "nll_loss": 3, "ppl": 2, "wps": 0, "ups": 2, "wpb": 0, "bsz": 1, "gnorm": 3}
_DECIMALS |= {"bleu": 2, "accuracy": 2}
_DECIMALS |= dict.fromkeys(("clip", "oom", "sample_size", "num_updates"), 0)


def shown(name: str, value: float) -> str:
    """Return a value as people read it: a number of decimals that its name decides, else up to six digits."""
    decimals = _DECIMALS.get(name.removeprefix("valid_"))
    return f"{value:g}" if decimals is None else f"{value:.{decimals}f}"


def form_of(args: Settings) -> str:
    """Return the form of the log that the flags ask for: no bar without a terminal to draw it on."""
    form = "simple" if args.no_progress_bar else args.log_format or "tqdm"
    return "simple" if form == "tqdm" and not sys.stderr.isatty() else form


class Log:
    """Prints, in the main process, averages by their names.

    Args:
        form: `tqdm` (a bar, and a line per epoch), `simple` (lines), `json` (lines of JSON) or `none`.
        interval: batches between the lines within an epoch.
        epochs, updates: how many the run has in all, 0 and None if nobody knows.
        done: updates made already.
    """

    def __init__(
        self,
        record: Record,
        form: str,
        interval: int,
        *,
        epochs: int = 0,
        updates: int | None = None,
        done: int = 0,
    ):
        self.record, self.form, self.interval, self.epochs = record, form, interval, epochs
        self._bar = progress(None, updates, "", record.is_main, done) if form == "tqdm" else None

    def follow(self, items: Iterable[Item], epoch: int) -> Iterator[Item]:
        """Go through the updates of an epoch, and let the bar of the run follow if there is one."""
        if self._bar is None:
            yield from items
            return
        self._bar.set_description(f"epoch {epoch}/{self.epochs}" if self.epochs else f"epoch {epoch}")
        for item in items:
            try:
                yield item
            finally:  # also where the run ends with this one
                self._bar.update()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def wants(self, before: int, batch: int) -> bool:
        """Tell whether to show averages after batch number `batch`, if the last step ended with batch `before`."""
        if self.form == "tqdm":
            return before == 0 or batch // 10 > before // 10
        return self.form != "none" and batch // self.interval > before // self.interval

    def within(self, epoch: int, batch: int, batches: int, values: dict[str, float]) -> None:
        """Show averages in the middle of an epoch."""
        if self.form == "tqdm":
            self._bar.set_postfix({name: shown(name, values[name]) for name in ("loss", "ppl", "wps", "lr", "gnorm")})
        elif self.form == "json":
            self._json({"epoch": epoch, "batch": batch, "batches": batches, **values})
        else:
            text = ", ".join(f"{name}={shown(name, value)}" for name, value in values.items())
            self.record.line(f"| epoch {epoch:03d}: {batch:6d} / {batches} {text}")

    def after(self, epoch: int, values: dict[str, float], subset: str | None = None) -> None:
        """Show averages over an epoch, or over the data `subset` after it."""
        if self.form == "json":
            self._json({"epoch": epoch, **({"subset": subset} if subset else {}), **values})
        elif self.form != "none":
            about = [f"valid on '{subset}' subset"] if subset else []
            parts = [f"epoch {epoch:03d}", *about, *(f"{name} {shown(name, value)}" for name, value in values.items())]
            self.record.line("".join(f"| {part} " for part in parts).rstrip())

    def _json(self, values: dict) -> None:
        self.record.line(json.dumps(values))
