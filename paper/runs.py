"""Runs wherever they lie: finished ones from their own folders or from records, and those without results."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lab.cli import UserError

from .events import Curves, curves_of_events
from .method import method_of
from .scripts import ROOT, markers
from .status import state_of
from .studies import STUDIES

RECORDS = "results"
"""Folder of the repository with the records of finished runs."""
FORMAT = 1
"""Of a record: the value of its field `record`."""

_TEXT, _NUMBER, _COUNT = "text", "a number", "a whole number"
_HEAD = {
    "study": _TEXT, "network": _TEXT, "data": _TEXT, "method": _TEXT, "metric": _TEXT, "best": _NUMBER,
    "final": _NUMBER, "epochs": _NUMBER, "seed": _COUNT, "rank scale": _NUMBER, "parameters": _COUNT,
    "dense parameters": _COUNT, "ratio": _NUMBER, "seconds": _NUMBER,
}  # fmt: skip

# Arguments that say where and how something is run, not what it computes; and the seed, which trials differ in.
ASIDE = {
    "seed", "resume", "auto_resume", "load_path", "overwrite", "device", "device_id", "GPU", "cpu", "workers",
    "print_freq", "save_every", "strict", "data_dir", "save_dir", "log_dir", "teacher_checkpoint", "student_checkpoint",
    "channels_last", "dump_frobnorms", "start_epoch", "evaluate", "deterministic", "log_interval", "log_format",
    "no_progress_bar", "no_epoch_checkpoints", "keep_last_epochs", "save_interval", "distributed_world_size",
}  # fmt: skip


class Unreadable(ValueError):
    """Why a file holds no results of a run, in words that follow its name."""


@dataclass(frozen=True)
class Run:
    """A finished run, from its own folder or from a record of it."""

    path: Path
    """The folder, or the file of the record."""
    results: Mapping[str, Any]
    """What its `results.json` holds."""
    arguments: Mapping[str, Any]
    name: str
    """The last parts of its folder's path."""
    setting: str | None
    """Of the paper's grid, which decides where the generated scripts run it; None for other runs."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What `generate.py` found out about a translation, {} without that."""
    read_curves: Callable[[], Curves] = field(default=dict, repr=False, compare=False)

    @property
    def study(self) -> str:
        """Return the name of the study's folder."""
        return self.results["study"]

    @property
    def seed(self) -> int:
        """Return the seed, by which trials are told apart."""
        return self.results["seed"]

    @property
    def metric(self) -> str:
        """Return what `best` and `final` are."""
        return self.results["metric"]

    @property
    def higher_is_better(self) -> bool:
        """Return whether it is an accuracy or a BLEU, and no error or loss."""
        return "accuracy" in self.metric or "BLEU" in self.metric

    @property
    def method(self) -> str:
        """Return the method in the paper's short words (`paper.method`)."""
        return method_of(self.results, self.arguments)

    @property
    def data(self) -> str:
        """Return the data set's name, which is that of its folder if it has one."""
        return os.path.basename(self.results["data"].rstrip("/")) or self.results["data"]

    @cached_property
    def curves(self) -> Curves:
        """Return steps and values by TensorBoard tag, {} if the run logged none.

        Raises:
            UserError: if they cannot be read.
        """
        return self.read_curves()

    def value(self, name: str) -> Any:
        """Return what `name` is for this run: a property, a field of its results or an argument; None if it has none.

        Args:
            name: dashes, underscores and spaces are alike.
        """
        plain = name.replace("-", "_").replace(" ", "_")
        if plain in ("method", "data", "setting", "name"):
            return getattr(self, plain)
        for values in (self.results, self.arguments):
            for key, value in values.items():
                if key.replace("-", "_").replace(" ", "_") == plain:
                    return portable(value)
        return None

    @property
    def identity(self) -> tuple:
        """Return what a run and a record of it have in common, and two runs have not."""
        numbers = tuple(self.results[name] for name in ("study", "network", "seed", "best", "final", "seconds"))
        plain = portable({name: value for name, value in self.arguments.items() if name not in ASIDE})
        return (*numbers, self.data, json.dumps(plain, sort_keys=True))


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
    for path in paths:
        if not path.exists():
            raise UserError(f"no such file or folder: {path}")
        for kind, place in _candidates(path):
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


def read_run(folder: Path) -> Run:
    """Return the finished run in a folder.

    Raises:
        Unreadable: if its results are not those of a run of ours.
    """
    results = _checked(_object(folder / "results.json"))
    arguments, evaluation = (_beside(folder / name) for name in ("args.json", "bleu.log.json"))
    return Run(
        folder, results, arguments, name=run_name(folder), setting=setting_of(results["study"], folder),
        evaluation=evaluation, read_curves=lambda: curves_of_events(folder),
    )  # fmt: skip


def _beside(path: Path) -> dict:
    """Return what a file beside the results holds, {} without one."""
    try:
        return _object(path) if path.exists() else {}
    except Unreadable as error:
        raise Unreadable(f"is damaged: its {path.name} {error}") from None


def read_record(path: Path) -> Run:
    """Return the run that a record was made of.

    Raises:
        Unreadable: if the file is none.
    """
    content = _object(path)
    if "record" not in content:
        raise Unreadable("is no record of a run: it has no field record")
    if content["record"] != FORMAT:
        raise Unreadable(f"is a record of format {content['record']!r}, and this version reads format {FORMAT} only")
    parts = {"results": dict, "arguments": dict, "name": str, "curves": list}
    for name, kind in parts.items():
        if not isinstance(content.get(name), kind):
            raise Unreadable(f"is damaged: its {name} is missing or of the wrong kind")
    curves: Curves = {}
    try:
        for group in content["curves"]:
            steps = [int(step) for step in group["steps"]]
            for tag, values in group["values"].items():
                if len(values) != len(steps):
                    raise Unreadable(f"is damaged: {tag} has {len(values)} values for {len(steps)} steps")
                curves[tag] = (steps, [float(value) for value in values])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable("is damaged: its curves are no numbers") from None
    return Run(
        path, _checked(content["results"]), content["arguments"], content["name"], content.get("setting"),
        evaluation=content.get("evaluation") or {}, read_curves=lambda: curves,
    )  # fmt: skip


def _object(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(value, dict):
        raise Unreadable(f"holds a {type(value).__name__}, not the fields of a run")
    return value


def _checked(results: dict) -> dict:
    """Return the results of a run, if they begin as all do."""
    if missing := [name for name in _HEAD if name not in results]:
        if "compression ratio" in results:
            raise Unreadable("was written by an earlier version: run the same command again with this one")
        raise Unreadable(f"is not of a run: it has no {missing[0]}")
    for name, kind in _HEAD.items():
        value = results[name]
        number = type(value) in (int, float) and math.isfinite(value)
        if not {_TEXT: isinstance(value, str), _NUMBER: number, _COUNT: type(value) is int}[kind]:
            raise Unreadable(f"is damaged: its {name} is {value!r}, not {kind}")
    if results["study"] not in STUDIES:
        raise Unreadable(f"is of the study {results['study']}, which is none of {', '.join(STUDIES)}")
    return results


def _unfinished(folder: Path) -> Unfinished:
    state, _, why = state_of(folder / "results.json")
    tails = ((study, setting_of(study, folder)) for study in STUDIES)
    study, setting = next((pair for pair in tails if pair[1]), (None, None))
    study = study or next((part for part in reversed(folder.absolute().parts) if part in STUDIES), None)
    return Unfinished(folder, "stopped" if state == "not started" else state, why, study, setting)


def run_name(folder: Path) -> str:
    """Return the last two parts of a run's path, which tell the method and the trial apart in most trees."""
    return "/".join(folder.absolute().parts[-2:]).lstrip("/")


def setting_of(study: str, folder: Path) -> str | None:
    """Return the setting of a study's grid whose runs lie in such a folder, whatever the folder of all results is."""
    parts = folder.absolute().parts[:-1]
    tails = _tails(study)
    return next((tails[parts[-n:]] for n in range(min(6, len(parts)), 0, -1) if parts[-n:] in tails), None)


@cache
def _tails(study: str) -> dict[tuple[str, ...], str]:
    """Return the settings by the parts of their runs' paths, those of all results and of the trial aside."""
    every = STUDIES[study].settings + STUDIES[study].additions
    pairs = ((Path(marker).parent, setting.name) for setting in every for marker in markers(setting, [0], "R"))
    return {folder.parts[1:-1]: name for folder, name in pairs}


def portable(value: Any) -> Any:
    """Return a value without what JSON or another machine has not.

    An absolute path becomes its last part, a number that is not finite None.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value.rstrip("/"))
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    return [portable(item) for item in value] if isinstance(value, list) else value
