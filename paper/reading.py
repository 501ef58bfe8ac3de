"""Finished runs from their own folders and from records of them, and which setting of a study's grid a run is of."""

import json
import math
from functools import cache
from pathlib import Path

from .events import Curves, curves_of_events
from .finished import Run
from .scripts import markers
from .studies import STUDIES

FORMAT = 1
"""Of a record: the value of its field `record`."""

_TEXT, _NUMBER, _COUNT = "text", "a number", "a whole number"
_HEAD = {
    "study": _TEXT, "network": _TEXT, "data": _TEXT, "method": _TEXT, "metric": _TEXT, "best": _NUMBER,
    "final": _NUMBER, "epochs": _NUMBER, "seed": _COUNT, "rank scale": _NUMBER, "parameters": _COUNT,
    "dense parameters": _COUNT, "ratio": _NUMBER, "seconds": _NUMBER,
}  # fmt: skip


class Unreadable(ValueError):
    """Why a file holds no results of a run, in words that follow its name."""


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
    content = {"setting": None, "evaluation": None, **content}
    nothing = type(None)
    parts: dict[str, tuple[type, ...]] = {
        "results": (dict,), "arguments": (dict,), "name": (str,), "curves": (list,), "setting": (str, nothing),
        "evaluation": (dict, nothing),
    }  # fmt: skip
    for name, kinds in parts.items():
        if not isinstance(content.get(name), kinds):
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
        path, _checked(content["results"]), content["arguments"], content["name"], content["setting"],
        evaluation=content["evaluation"] or {}, read_curves=lambda: curves,
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
