"""What a sweep shows while it runs: a few lines that change, on a terminal, else a line for each event."""

import shutil
import sys
import time
from collections.abc import Callable, Iterable

from .trial import Progress, Trial

_PULSE = 60  # seconds between two reports where there is no terminal
_DRAW = 1  # and between two drawings on one


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 12 min, 3 h 20 min, 4 days."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 60 * 48:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes / 1440:.0f} days"


def in_words(progress: Progress) -> str:
    """Return how far a run is, how fast, and when it will be done."""
    rate, unit = progress.rate, progress.unit
    speed, left = "", ""
    if rate > 0:
        per = next((per, name) for per, name in ((1, "s"), (60, "min"), (3600, "h")) if rate * per >= 1 or name == "h")
        speed = f", {rate * per[0]:.3g} {unit}/{per[1]}"
        left = f", {duration(max(0.0, progress.total - progress.done) / rate)} left"
    return f"{progress.done:.4g} of {progress.total:.6g} {unit}{speed}{left}"


class View:
    """The changing lines on standard error, and lines above them that stay."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._drawn = 0  # lines that a next drawing replaces
        self._last = time.monotonic() - _DRAW

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        print(text, file=sys.stderr if self._terminal else sys.stdout, flush=True)

    def show(self, head: Callable[[], str], running: Iterable[Trial]) -> None:
        """Show how far all is, in the line that `head` returns, and each of the running trials, if it is time to."""
        now = time.monotonic()
        if now - self._last < (_DRAW if self._terminal else _PULSE):
            return
        self._last = now
        lines = [f"  {trial}{_leg(trial)}  {_progress(trial)}" for trial in running]
        if not self._terminal:
            for line in [head(), *lines]:
                print(line, flush=True)
            return
        columns, rows = shutil.get_terminal_size()
        room = max(1, rows - 3)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"  ... and {len(lines) - room + 1} more"]
        self._clear()
        text = [line[: columns - 1] for line in [head(), *lines]]
        sys.stderr.write("\n".join(text) + "\n")
        sys.stderr.flush()
        self._drawn = len(text)

    def close(self) -> None:
        """Take the changing lines away."""
        self._clear()

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            sys.stderr.flush()
            self._drawn = 0


def _leg(trial: Trial) -> str:
    count = len(trial.markers)
    return f" ({min(trial.finished() + 1, count)} of {count})" if count > 1 else ""


def _progress(trial: Trial) -> str:
    progress = trial.progress()
    return in_words(progress) if progress else "starting"
