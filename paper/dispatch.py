"""Trials on their way through the queue of a cluster."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable
from operator import mul
from typing import Any

from lab.cli import Terminated

from .clusters import Local, Slurm
from .trial import Trial
from .view import View, duration


class Sweep:
    """Trials on their way through a queue.

    Attributes:
        waiting: trials that are to be run.
        active: those that the cluster has, by its handles.
        ended: the others, by what became of them: `finished`, `failed`, or why they have stopped.
        elsewhere: the number of waiting ones that another process is at work on.
    """

    def __init__(self, trials: list[Trial], cluster: Local | Slurm, view: View):
        self.trials, self.cluster, self.view = trials, cluster, view
        self.ended: dict[Trial, str] = {trial: "finished" for trial in trials if trial.state() == "finished"}
        self.waiting = deque(trial for trial in trials if trial not in self.ended)
        self.active: dict[Any, Trial] = {}
        self.elsewhere = 0
        self._begun = {trial: trial.share() for trial in self.waiting}  # as was last seen
        self._started, self._first = time.monotonic(), self.share()

    def run(self, environment: dict[str, str]) -> None:
        """Run all trials.

        Args:
            environment: variables for their scripts.
        """
        try:
            while self.waiting or self.active:
                self._submit(environment)
                self._collect()
                self.view.show(self.head, self._running())
                time.sleep(self.cluster.seconds)
        except (KeyboardInterrupt, Terminated) as error:
            self._stop()
            error.args = ("the same command goes on where the runs were stopped",)
            raise
        finally:
            self.view.close()

    def _submit(self, environment: dict[str, str]) -> None:
        """Give to the cluster what it has room for, leaving out what another process is at work on."""
        chosen: list[Trial] = []
        self.elsewhere = 0
        for _ in range(len(self.waiting)):
            if len(chosen) == self.cluster.room:
                break
            trial = self.waiting.popleft()
            state = trial.state()
            if state == "finished":
                self._end(trial, state)
            elif state == "running":
                self.waiting.append(trial)
                self.elsewhere += 1
            else:
                chosen.append(trial)
        if chosen:
            handles = self.cluster.submit([trial.job(environment) for trial in chosen])
            self.active.update(zip(handles, chosen))

    def _collect(self) -> None:
        """Take from the cluster what has ended."""
        for handle in self.cluster.ended(self.active):
            trial = self.active.pop(handle)
            state = trial.state()
            if state == "running":  # another process was first
                self.waiting.append(trial)
            elif state in ("finished", "failed"):
                self._end(trial, state)
            else:
                said = (handle.stdout() or "").split("\n")
                self._end(trial, next((line for line in reversed(said) if line.strip()), "its job is gone"))
            _forget(handle)

    def _running(self) -> list[Trial]:
        """Return the trials whose jobs have begun."""
        return [trial for handle, trial in self.active.items() if self.cluster.waiting(handle) is None]

    def _end(self, trial: Trial, outcome: str) -> None:
        self.ended[trial] = outcome
        self.view.say(f"{_kind(outcome)}: {trial}  [{len(self.ended)} of {len(self.trials)}]")

    def _stop(self) -> None:
        """Stop what is running, and wait until it has stopped."""
        if self.active:
            self.view.say(f"stopping {len(self.active)} trials")
        asked = 0.0
        while self.active:
            if time.monotonic() > asked + 5:  # again: a job that has just begun may not have heard it
                self.cluster.cancel(self.active)
                asked = time.monotonic()
            for handle in self.cluster.ended(self.active):
                del self.active[handle]
                _forget(handle)
            time.sleep(0.2)

    def share(self) -> float:
        """Return how much of the work is done, from 0 to 1, by the estimates of the paper's generator."""
        self._begun |= {trial: trial.share() for trial in self.active.values()}
        return self._work(lambda trial: self.ended.get(trial) == "finished" or self._begun.get(trial, 0.0))

    def _work(self, part: Callable[[Trial], float]) -> float:
        """Return the share of all work that such parts of the trials are."""
        minutes = [trial.setting.minutes for trial in self.trials]
        return sum(map(mul, minutes, map(part, self.trials))) / sum(minutes)

    def head(self) -> str:
        """Return the state of the sweep in one line."""
        queued = [why for handle in self.active if (why := self.cluster.waiting(handle)) is not None]
        count = Counter(map(_kind, self.ended.values()))
        count += Counter(running=len(self.active) - len(queued), queued=len(queued), elsewhere=self.elsewhere)
        reasons = ", ".join(sorted({*queued} - {""}))
        names = ("running", "queued", "failed", "stopped", "elsewhere")
        text = f"{count['finished']} of {len(self.trials)} finished"
        text += "".join(f", {count[name]} {name}" for name in names if count[name])
        text = text.replace("queued", f"queued ({reasons})") if reasons else text
        gone, share = time.monotonic() - self._started, self.share()
        text += f"; {100 * share:.1f} % of the work, {duration(gone)}"
        if share > self._first and gone > 10:
            left = self._work(lambda trial: trial not in self.ended and 1.0 - self._begun.get(trial, 0.0))
            text += f", about {duration(gone * left / (share - self._first))} left"
        return text


def _kind(outcome: str) -> str:
    return outcome if outcome in ("finished", "failed") else "stopped"


def _forget(handle: Any) -> None:
    """Remove what submitit has written for a job."""
    for path in (handle.paths.submitted_pickle, handle.paths.result_pickle, handle.paths.stdout):
        with contextlib.suppress(OSError):
            path.unlink()
