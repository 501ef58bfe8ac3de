"""Runs wherever they lie: finished ones from their own folders or from records, and those without results."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.cli import UserError

from .finished import Run
from .reading import Unreadable, read_record, read_run, setting_of
from .scripts import ROOT
from .status import state_of
from .studies import STUDIES

RECORDS = "results"
"""Folder of the repository with the records of finished runs."""


@dataclass(frozen=True)
class Unfinished:
    """A run without results."""

    path: Path
    state: str
    """One of `paper.status.STATES`."""
    why: str
    """The line that a failed one ended with."""
    study: str | None
    setting: str | None


@dataclass(frozen=True)
class Found:
    """What lies in some folders."""

    runs: list[Run]
    unfinished: list[Unfinished]
    passed: list[tuple[Path, str]]
    """Files that were passed over, and why."""


def find(paths: Iterable[Path], study: str | None = None) -> Found:
    """Return what lies in the folders, or is one of the files, at any depth. A run and its record count once.

    Args:
        study: only runs of this one.

    Raises:
        UserError: for a path that is not there.
    """
    found = Found([], [], [])
    seen: set[tuple] = set()
    looked: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"no such file or folder: {path}")
        for kind, place in _candidates(path):
            if place.resolve() in looked:
                continue
            looked.add(place.resolve())
            try:
                if kind == "unfinished":
                    found.unfinished.append(_unfinished(place))
                    continue
                run = read_run(place) if kind == "run" else read_record(place)
            except Unreadable as error:
                found.passed.append((place, str(error)))
                continue
            if run.identity not in seen and study in (None, run.study):
                seen.add(run.identity)
                found.runs.append(run)
    if study:
        found.unfinished[:] = [run for run in found.unfinished if run.study in (None, study)]
    return found


def places(given: list[Path] | None, studies: Iterable[str] = STUDIES) -> list[Path]:
    """Return where to look: what was given, else the results of the generated scripts and the records.

    Raises:
        UserError: if nothing is given and neither is there.
    """
    if given:
        return given
    usual = [ROOT / RECORDS, *(ROOT / study / "results" for study in studies)]
    if there := [path for path in usual if path.is_dir()]:
        return there
    raise UserError(f"there are no results yet, neither in {usual[0]} nor in {usual[-1]}; say where with --from DIR")


def _candidates(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield, in order, folders of runs and files that may be records."""
    if path.is_file():
        yield ("run", path.parent) if path.name == "results.json" else ("record", path)
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder)
        if "results.json" in files:
            yield "run", here
        elif {"args.json", "failed", "log.txt"}.intersection(files):
            yield "unfinished", here
        else:
            yield from (("record", here / name) for name in sorted(files) if name.endswith(".json"))


def _unfinished(folder: Path) -> Unfinished:
    state, _, why = state_of(folder / "results.json")
    tails = ((study, setting_of(study, folder)) for study in STUDIES)
    study, setting = next((pair for pair in tails if pair[1]), (None, None))
    study = study or next((part for part in reversed(folder.absolute().parts) if part in STUDIES), None)
    return Unfinished(folder, "stopped" if state == "not started" else state, why, study, setting)
