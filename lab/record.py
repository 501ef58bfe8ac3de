"""What a run leaves in its folder besides checkpoints, and what it shows while it runs.

A folder holds `args.json`, TensorBoard events, the trainer's checkpoints and, once the run is finished, `results.json`;
until then `progress.json` says how far it is.
"""

import dataclasses
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import factorized

from . import ROOT
from .checkpoint import save_json
from .cli import printable

PROGRESS = "progress.json"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What every `results.json` begins with, whatever else it holds."""

    study: str
    """The name of the study's folder."""
    network: str
    data: str
    method: str
    """The method in words: dense or low-rank, how the factors started, which decay."""
    metric: str
    """The measure that `best` and `final` are of."""
    best: float
    """The highest value, or the lowest of an error or loss, after any epoch."""
    final: float
    """The value after the last epoch."""
    epochs: int
    seed: int
    rank_scale: float
    """The rank scale; 0 without one."""
    parameters: int
    dense_parameters: int
    decay_budget: float | None
    """`factorized.decay_budget` of the whole run; None where the learning rates are not known beforehand."""
    validation: str
    """The examples that `best` and `final` are measured on, in words."""

    def fields(self) -> dict[str, Any]:
        """Return the fields by the names that they have in the file, with the ratio of the parameter counts."""
        fields = {name.replace("_", " "): value for name, value in dataclasses.asdict(self).items()}
        after = list(fields).index("decay budget")
        ratio = {"ratio": self.parameters / self.dense_parameters}
        return {**dict(list(fields.items())[:after]), **ratio, **dict(list(fields.items())[after:])}


class Record:
    """TensorBoard events, `results.json` and console lines of one run. Only the main process writes.

    Args:
        folder: the run's folder.
        is_main: whether this process writes at all.
        first_epoch: events of this epoch and later, left by an interrupted part of the run, are hidden.
        seconds: what earlier parts of the run took.
    """

    def __init__(self, folder: Path, is_main: bool, first_epoch: int = 0, seconds: float = 0.0):
        self.folder, self.is_main = folder, is_main
        self._started = time.time() - seconds
        self._told: tuple[float, float] | None = None  # when, and how far the run was then, at the first report
        self._next = 0.0  # when the next report is due
        self._events: Any = None
        if is_main:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed to parse flags

            _wait_for_a_later_name(folder)
            earlier = first_epoch or any(folder.glob("events.out.*"))
            self._events = SummaryWriter(str(folder), purge_step=first_epoch if earlier else None)

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, its earlier parts included."""
        return time.time() - self._started

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Log `values` by tag at `step`, and make them durable."""
        if self._events:
            for tag, value in values.items():
                self._events.add_scalar(tag, value, step)
            self._events.flush()

    def line(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self.is_main:
            tqdm.write("\n".join(map(printable, text.split("\n"))))
            sys.stdout.flush()

    def progress(self, done: float, total: float, unit: str) -> None:
        """Write into `progress.json` how far the run is and how fast in this part of it, at most once a second.

        Args:
            done: units that are done, of `total`; those of earlier parts, too.
            unit: its name, in the plural.
        """
        now = time.monotonic()
        if self.is_main and now >= self._next:
            then, first = self._told = self._told or (now, done)
            rate = (done - first) / (now - then) if now > then else 0.0
            state = {"done": done, "total": total, "unit": unit, "rate": rate}
            save_json(self.folder / PROGRESS, state)
            self._next = now + 1

    def results(self, summary: Summary, more: dict) -> None:
        """Write `results.json`: the summary, time, memory and machine, and then the study's own fields."""
        if self.is_main:
            environment = {
                "seconds": round(self.seconds, 1),
                "seconds per epoch": round(self.seconds / summary.epochs, 2) if summary.epochs else None,
                "peak memory": peak_memory(),
                "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
                "versions": {
                    "factorized": factorized.__version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
                "revision": revision(),
            }
            published = {"torch": torch.__version__, "python": platform.python_version()}
            save_json(self.folder / "results.json", {**summary.fields(), **environment, **more, **published})
            (self.folder / PROGRESS).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the event file."""
        if self._events:
            self._events.close()


def progress(batches: Iterable | None, total: int | None, label: str, is_main: bool, done: int = 0, **options) -> tqdm:
    """Return `batches` under a progress bar on standard error, which is silent when that is not a terminal.

    Args:
        batches: None for a bar that is moved by hand.
        total: None if nobody knows.
        done: where the bar begins, which says nothing about the time left.
        options: further ones of tqdm's.
    """
    shared = {"leave": False, "disable": None if is_main else True, "dynamic_ncols": True}
    return tqdm(batches, total=total, initial=done, desc=label, **shared, **options)


def peak_memory() -> int:
    """Return the most bytes that this process has held: of the GPU's memory if it has used a GPU, else of the main."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def revision(root: Path = ROOT) -> str | None:
    """Return the checkout's own revision; None if `root` is not the top of a checkout, but perhaps lies in another."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None
    return _git(root, "describe", "--always", "--dirty")


def _git(root: Path, *command: str) -> str | None:
    try:
        ran = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10)
        return ran.stdout.strip() or None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until event files are named after a later second than those in `folder`, which are read in this order."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*.*")]
    while seconds and int(time.time()) == max(seconds):
        time.sleep(0.01)
