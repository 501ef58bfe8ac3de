"""One trial of a setting: where it lies, how far it is, and what it says if it has failed."""

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template

from lab.cli import printable
from lab.lock import is_held

from .job import Job
from .scripts import ROOT, Slot, markers, script_text, values
from .setting import Command, Setting, Study
from .status import state_of

HIDDEN = ".sweep"
"""The folder among results that holds what queues write, and the locks of trials."""


@dataclass(frozen=True)
class Progress:
    """How far a training run is."""

    done: float
    total: float
    unit: str
    rate: float
    """The number of units a second."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial of a setting; its commands run one after the other.

    Attributes:
        results: the results folder, relative to the study's.
    """

    study: Study
    setting: Setting
    number: int
    results: str

    def __str__(self) -> str:
        return f"{self.setting.name} {self.number}"

    @property
    def home(self) -> Path:
        """The folder of the study, where its commands run."""
        return ROOT / self.study.folder

    @cached_property
    def markers(self) -> list[Path]:
        """The files that mark the commands as finished."""
        return [self.home / path for path in markers(self.setting, (self.number,), self.results)]

    @property
    def lock(self) -> Path:
        """The folder whose lock a sweep holds while it runs this trial."""
        return self.home / self.results / HIDDEN / self.study.folder / f"{self.setting.name}--{self.number}"

    def state(self) -> str:
        """Return one of `status.STATES`, of all commands together."""
        states = [state_of(marker)[0] for marker in self.markers]
        if all(state == "finished" for state in states):
            return "finished"
        if is_held(self.lock) or "running" in states:
            return "running"
        if "failed" in states:
            return "failed"
        return "stopped" if {"stopped", "finished"} & {*states} else "not started"

    def finished(self) -> int:
        """Return the number of commands that are finished."""
        return sum(marker.exists() for marker in self.markers)

    def progress(self) -> Progress | None:
        """Return how far the first unfinished command is; None where it does not say so."""
        at = self.finished()
        if at == len(self.markers):
            return None
        try:
            return Progress(**json.loads((self.markers[at].parent / "progress.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def share(self) -> float:
        """Return how much of the trial is done, from 0 to 1; all commands count alike."""
        progress = self.progress()
        part = progress.done / progress.total if progress and progress.total else 0.0
        return (self.finished() + min(part, 1.0)) / len(self.markers)

    def job(self, environment: dict[str, str]) -> Job:
        """Return what a queue is to run."""
        script = script_text(
            self.study, Slot(0, self.setting.name, ((self.setting, (self.number,)),)), self.results, "auto", str(ROOT)
        )
        return Job(script, self.lock, {"GPU": "auto", "RESULTS": self.results, **environment})

    def failure(self, lines: int = 10) -> list[str]:
        """Return lines about the command that has failed: where, its last words, and how to run it by hand."""
        for command, marker in zip(self.setting.commands, self.markers):
            failed = marker.parent / "failed"
            if not marker.exists() and failed.exists():
                log = marker.parent / "log.txt"
                said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:] if log.exists() else []
                return [
                    f"failed: {self}, in {marker.parent}",
                    *(f"  | {printable(line)}" for line in said),
                    f"  command: {self.command_line(command)}",
                ]
        return []

    def command_line(self, command: Command) -> str:
        """Return the command as it can be typed into a shell in the repository."""
        return f"cd {shlex.quote(self.study.folder)} && python {shlex.join(self.argv(command))}"

    def argv(self, command: Command) -> list[str]:
        """Return the command's program and arguments, without variables."""
        named = {**values(self.setting, self.number, self.results), "GPU": "auto"}
        return [Template(token).substitute(named) for token in self.study.argv(command)]
