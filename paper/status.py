"""Show which runs of the generated scripts are finished or running, have failed or were stopped."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lab import ROOT
from lab.cli import Parser, UserError, launch
from lab.lock import is_held

from .scripts import FOLDER, markers, read_manifest
from .setting import Setting, Study
from .studies import STUDIES

STATES = ("finished", "running", "failed", "stopped", "not started")


@dataclass(frozen=True)
class Run:
    """One training run of a script."""

    setting: str
    folder: Path
    state: str
    """One of `STATES`."""
    accuracy: float | None
    """What the run ended with, in percent; None before, and for runs that have no accuracy."""
    why: str = ""
    """The line that a failed run ended with."""


def state_of(marker: Path) -> tuple[str, float | None, str]:
    """Return a run's state, accuracy and the line it failed with, from the file that marks it as finished."""
    folder = marker.parent
    if marker.exists():
        return "finished", _accuracy(marker), ""
    if is_held(folder):
        return "running", None, ""
    if (folder / "failed").exists():
        return "failed", None, (folder / "failed").read_text(errors="replace").strip()
    return ("stopped" if (folder / "log.txt").exists() else "not started"), None, ""


def _accuracy(path: Path) -> float | None:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return float(results["final test accuracy"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def runs_of(study: Study, jobs: list[dict], results: str | None) -> Iterator[Run]:
    """Yield the training runs of the jobs in a manifest.

    Args:
        results: where the results are, if elsewhere than the scripts say; relative to the study's folder.

    Raises:
        UserError: if the grid has no such setting any more.
    """
    settings = {setting.name: setting for setting in study.settings + study.additions}
    for job in jobs:
        setting: Setting | None = settings.get(job["name"])
        if setting is None:
            raise UserError(f"the grid has no setting {job['name']} any more; write the scripts again")
        paths = markers(setting, job["trials"], results) if results else job["finished_by"]
        training = [command.training for command in setting.commands] * len(job["trials"])
        for path, counts in zip(paths, training):
            if counts:  # as the scripts are counted, too
                yield Run(setting.name, (ROOT / study.folder / path).parent, *state_of(ROOT / study.folder / path))


def table(found: list[Run], every: bool) -> list[str]:
    """Return a line for each setting, or for all settings with the same network and data, and for each failed run."""
    groups: dict[str, list[Run]] = {}
    for run in found:
        groups.setdefault(run.setting if every else _group(run), []).append(run)
    say = _mean if every else _range
    lines = [f"  {_count(members)}  {name}{say(members)}" for name, members in groups.items()]
    return lines + [f"  failed: {run.folder}: {run.why}" for run in found if run.state == "failed"]


def _group(run: Run) -> str:
    """Return the first two words of a setting's name, which are data and network in most studies."""
    return "-".join(run.setting.split("-")[:2])


def _count(members: list[Run]) -> str:
    count = Counter(run.state for run in members)
    others = ", ".join(f"{count[state]} {state}" for state in STATES[1:-1] if count[state])
    return f"{count['finished']:4} of {len(members):4} finished" + (f", {others}" if others else "")


def _mean(trials: list[Run]) -> str:
    found = _accuracies(trials)
    spread = f" (standard deviation {statistics.stdev(found):.2f})" if len(found) > 1 else ""
    return f": {statistics.mean(found):.2f} %{spread}" if found else ""


def _range(members: list[Run]) -> str:
    found = _accuracies(members)
    return f": {min(found):.2f} to {max(found):.2f} %" if found else ""


def _accuracies(members: list[Run]) -> list[float]:
    return [run.accuracy for run in members if run.accuracy is not None]


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m paper status", description=__doc__)
    add, names = parser.add_argument, list(STUDIES)
    add("--study", nargs="+", choices=names, default=names, metavar="NAME", help=f"{', '.join(names)} (default: all)")
    add("--only", metavar="GLOB", default="*", help="only settings with such a name")
    add("--results", metavar="DIR", help="results folder, if the scripts were run with RESULTS=DIR")
    add("--out", type=Path, metavar="DIR", help="where the scripts are, if they were written with --out DIR")
    add("--all", action="store_true", help="a line for each setting, not for each network and data set")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the states of the runs that the command line names."""
    args = build_parser().parse_args(argv)
    lines, any_jobs = [], False
    for study in (STUDIES[name] for name in dict.fromkeys(args.study)):
        scripts = (args.out.resolve() if args.out else ROOT) / study.folder / FOLDER
        jobs = [job for job in read_manifest(scripts) if fnmatchcase(job["name"], args.only)]
        any_jobs |= bool(jobs)
        if args.results and not (ROOT / study.folder / args.results).is_dir():
            continue
        found = list(runs_of(study, jobs, args.results))
        if found:
            lines += table(found, args.all) + [f"{study.folder}: {_count(found).strip()}"]
    if not lines and args.results and any_jobs:
        raise UserError(f"no study has a folder {args.results} with results; a relative path starts at its folder")
    if not lines:
        raise UserError(
            f"no script has been written for a name like {args.only}; write them with python -m paper scripts; "
            "python -m paper results lists runs without them"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    launch(main, "python -m paper status")
