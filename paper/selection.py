"""Which runs, and which settings that have not been run, a table or figure is made of."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from lab.cli import Parser, UserError, number

from .cells import FIELDS, fields_of
from .finished import Run
from .method import PLAIN
from .planned import Planned, plans_of
from .results import add_places
from .runs import Found
from .studies import STUDIES

LAST = 5
"""Epochs of the mean over the last ones."""


@dataclass
class Section:
    """What one table holds: runs with the same network and data."""

    network: str
    data: str
    runs: list[Run] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    """What has not been run yet."""

    @property
    def title(self) -> str:
        """Return what the rows are of."""
        return f"{self.network} on {self.data}"


def sections(found: Iterable[Run], plans: Iterable[Planned] = ()) -> list[Section]:
    """Return runs and what is planned by network and data, in the order of their names."""
    by_title: dict[tuple[str, str], Section] = {}
    for run in found:
        key = run.results["network"].partition(" of ")[0], run.data
        by_title.setdefault(key, Section(*key)).runs.append(run)
    done = {(run.study, run.setting, run.method) for section in by_title.values() for run in section.runs}
    for plan in plans:
        if (plan.study, plan.setting, dict(plan.labels)["method"]) not in done:
            key = plan.network, plan.data
            by_title.setdefault(key, Section(*key)).planned.append(plan)
    return [by_title[key] for key in sorted(by_title)]


def selected(args: argparse.Namespace, found: Found) -> tuple[list[Run], list[Planned]]:
    """Return the runs that the command line selects, and what of the grid has not been run.

    Where results are looked for by `--from`, only what is there counts.
    """
    study = STUDIES[args.study]
    runs = [run for run in found.runs if _is_named(run, args.only)]
    plans: list[Planned] = []
    if args.places is None or args.missing:
        for setting in study.settings:
            if fnmatchcase(setting.name, args.only):
                plans += plans_of(study, setting)
    if not runs and not plans:
        passed = "".join(f"; passed over: {path} {why}" for path, why in found.passed[:3])
        raise UserError(f"no run and no setting of {args.study} is named like {args.only}{passed}")
    for name in args.by if runs else ():
        if not any(name in fields_of(run) or run.value(name) is not None for run in runs):
            raise UserError(f"no run has {name}; --by takes {', '.join(FIELDS)}, arm, and any argument or result")
    known = sorted({run.method for run in runs} | {fields_of(run)["arm"] for run in runs if args.by})
    if args.against != PLAIN and args.against not in known:
        raise UserError(f"no run is of {args.against}; there are {', '.join(known) or 'none'}")
    return runs, plans


def _is_named(run: Run, pattern: str) -> bool:
    return fnmatchcase(run.setting or "", pattern) or fnmatchcase(run.name, pattern)


def add_flags(parser: Parser) -> None:
    """Add the flags that select runs and say how they are put together."""
    add = parser.add_argument
    add("study", choices=list(STUDIES), metavar="STUDY", help=", ".join(STUDIES))
    add_places(parser)
    add("--only", metavar="GLOB", default="*", help="only settings, or folders of runs, with such a name (default all)")
    add(
        "--by",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"group runs by these instead: {', '.join(FIELDS)}, arm (the folder of the trials), or any argument",
    )
    add("--last", type=number(int, least=1), default=LAST, metavar="N", help=f"epochs of a mean (default {LAST})")
    add(
        "--against", default=PLAIN, metavar="METHOD", help=f"what others are compared with (default {PLAIN}), or an arm"
    )
