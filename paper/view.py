"""What a sweep shows while it runs: a few lines that change, on a terminal, else a line for each event."""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence

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


def in_words(progress: Progress, fast: bool = True) -> str:
    """Return how far a run is, how fast unless `fast` is False, and when it will be done."""
    rate, unit = progress.rate, progress.unit
    speed, left = "", ""
    if rate > 0:
        per = next((per, name) for per, name in ((1, "s"), (60, "min"), (3600, "h")) if rate * per >= 1 or name == "h")
        speed = f", {rate * per[0]:.3g} {unit}/{per[1]}" if fast else ""
        left = f", {duration(max(0.0, progress.total - progress.done) / rate)} left"
    return f"{progress.done:.4g} of {progress.total:.6g} {unit}{speed}{left}"


class View:
    """The changing lines on standard error, and lines above them that stay."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and sys.stdout.isatty()  # else for a file or a program
        self._drawn: list[int] = []  # the lengths of the lines that a next drawing replaces
        self._last = time.monotonic() - _DRAW

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._terminal:
            self._write([text])
        else:
            print(text, flush=True)

    def show(self, head: Callable[[], str], running: Iterable[Trial]) -> None:
        """Show how far all is, in the line that `head` returns, and each of the running trials, if it is time to."""
        now = time.monotonic()
        if now - self._last < (_DRAW if self._terminal else _PULSE):
            return
        self._last = now
        trials = [(f"{trial}{_leg(trial)}", trial.progress()) for trial in running]
        if not self._terminal:
            for line in [head(), *_lines(trials)]:
                print(line, flush=True)
            return
        columns, rows = shutil.get_terminal_size()
        lines = _lines(trials, columns - 1)
        room = max(1, rows - 4)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"  ... and {len(lines) - room + 1} more"]
        text = [line[: columns - 1] for line in [*_broken(head(), columns - 1), *lines]]
        self._write(text)
        self._drawn = [len(line) for line in text]

    def close(self) -> None:
        """Take the changing lines away."""
        if self._drawn:
            self._write([])

    def _write(self, lines: Sequence[str]) -> None:
        """Write lines in the place of the changing ones, which a terminal that has become narrower has wrapped.

        All at once, so that nothing flickers; and line by line, as some terminals keep what is erased as a whole. Each
        is erased before it is written: tmux takes what was wrapped for wrapped still if it is written over.
        """
        columns = shutil.get_terminal_size().columns
        rows = sum(max(1, -(-length // columns)) for length in self._drawn)
        self._drawn = []
        back = f"\x1b[{rows}F" if rows else ""
        sys.stderr.write(back + "".join(f"\x1b[K{line}\n" for line in lines) + "\x1b[J")
        sys.stderr.flush()


def _broken(head: str, columns: int) -> list[str]:
    """Return the first line, broken behind the counts if it is too long."""
    counts, _, rest = head.partition("; ")
    return [head] if len(head) <= columns or not rest else [counts, f"  {rest}"]


def _lines(trials: Sequence[tuple[str, Progress | None]], columns: int = sys.maxsize) -> list[str]:
    """Return lines about trials by their names, which lack the speed or the middle of the names if there is no room."""
    for fast in (True, False):
        says = [in_words(progress, fast) if progress else "starting" for _, progress in trials]
        width, longest = (max(map(len, texts), default=0) for texts in ((name for name, _ in trials), says))
        if 2 + width + 2 + longest <= columns:
            break
    width = max(min(width, columns - longest - 4), 16)
    return [f"  {_shortened(name, width):{width}}  {words}" for (name, _), words in zip(trials, says)]


def _shortened(name: str, width: int) -> str:
    """Return a name without its middle if it is too long: its end tells trials apart."""
    if len(name) <= width:
        return name
    begin = (width - 3) // 2
    return f"{name[:begin]}...{name[begin + 3 - width :]}"


def _leg(trial: Trial) -> str:
    count = len(trial.markers)
    return f" ({min(trial.finished() + 1, count)} of {count})" if count > 1 else ""
