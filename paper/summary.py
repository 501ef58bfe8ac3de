"""Table of a study: trials of the same thing together, with their spread, and what they are compared with.

python -m paper table pytorch_resnet_cifar10 --only '*resnet56*'
python -m paper table pytorch_resnet_cifar10 --from results/resnet20-cifar10 --against plain --compare mean
python -m paper table EigenDamage-Pytorch --format latex --out table.tex
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.checkpoint import write_whole
from lab.cli import Parser, UserError, launch

from .cells import Cell, Comparison, group, sort_key
from .finished import Run
from .method import ORDER, PLAIN
from .published import PUBLISHED
from .results import warn_of
from .runs import Found, find, places
from .selection import LAST, Section, add_flags, sections, selected
from .tables import FORMS, Code, Spread, Table

COLUMNS = (
    "budget", "trials", "last", "best", "mean", "test", "training loss", "tokenized BLEU", "sacreBLEU", "parameters",
    "ratio", "seconds", "difference", "published", "command",
)  # fmt: skip
"""What a table may show of each cell, besides what distinguishes it."""
OURS = ORDER
"""Methods of this repository; published values of others have rows of their own."""


@dataclass(frozen=True)
class Options:
    """How a table is made.

    Attributes:
        by: names to group by (`cells.group`).
        against: what others are compared with (`cells.Comparison`).
        compare: the number that is compared: last, best, mean or test.
        last: epochs of the mean over the last ones.
        columns: some of `COLUMNS`; dashes are spaces.
    """

    by: tuple[str, ...] = ()
    against: str = PLAIN
    compare: str = "last"
    last: int = LAST
    columns: tuple[str, ...] = COLUMNS

    def __post_init__(self):
        object.__setattr__(self, "columns", tuple(name.replace("-", " ") for name in self.columns))
        if unknown := [name for name in self.columns if name not in COLUMNS]:
            raise UserError(f"there is no column {unknown[0]}, only {', '.join(COLUMNS)}")


def table_of(section: Section, options: Options) -> Table:
    """Return the table of a section: a row for each cell, whether it has been run or only planned or published."""
    cells = group(section.runs, options.by)
    comparison = Comparison(cells, options.against, options.compare, options.last)
    metric = section.runs[0].metric if section.runs else "accuracy (%)"
    digits = 3 if "loss" in metric else 2
    rows = [(dict(cell.labels), _numbers(cell, comparison, digits)) for cell in cells]
    rows += [(dict(plan.labels), {"trials": 0, "command": Code(plan.command)}) for plan in section.planned]
    sources = _add_published(rows, section) if not options.by else []
    rows.sort(key=lambda row: sort_key(row[0]))
    names = _shown([labels for labels, _ in rows])
    wanted = [name for name in options.columns if any(numbers.get(name) is not None for _, numbers in rows)]
    budgets = {text for _, numbers in rows if (text := numbers.get("budget"))}
    wanted = [name for name in wanted if name != "budget" or len(budgets) > 1 and "decay" not in names]
    unit = " (%)" if "%" in metric else ""
    heads = {
        "last": f"last{unit}", "best": f"best{unit}", "mean": f"mean of last {options.last}", "test": f"test{unit}",
        "seconds": "s/epoch", "difference": f"{options.compare} against {options.against}",
        "published": "published (%)", "budget": "decay budget",
    }  # fmt: skip
    return Table(
        title=section.title,
        columns=tuple(heads.get(name, name) for name in (*names[1:], *wanted)),
        rows=tuple((*map(labels.get, names), *map(numbers.get, wanted)) for labels, numbers in rows),
        notes=tuple(dict.fromkeys([*_notes(cells, names, wanted, options), *sources])),
        digits=digits,
    )


def _numbers(cell: Cell, comparison: Comparison, digits: int) -> dict[str, Any]:
    """Return what the columns of `COLUMNS` have for a cell, without those that it has not."""
    first = cell.runs[0].results
    numbers = {
        "trials": len(cell.runs), "parameters": first["parameters"], "ratio": round(float(first["ratio"]), 4),
        "difference": comparison.difference(cell),
    }  # fmt: skip
    if isinstance(first.get("decay budget"), int | float):
        numbers["budget"] = f"{first['decay budget']:.3g}"
    for name in ("last", "best", "mean", "test", "training loss", "tokenized BLEU", "sacreBLEU"):
        if values := cell.values(name, comparison.last):
            usual = 2 if "BLEU" in name else digits
            numbers[name] = Spread(tuple(values), 3 if name == "training loss" else usual)
    if seconds := cell.values("seconds per epoch"):
        numbers["seconds"] = Spread(tuple(seconds), 1 if max(seconds) > 10 else 2)
    return numbers


def _shown(every: Sequence[dict[str, str]]) -> list[str]:
    """Return the names of the labels that rows show, the method first: those that have several values."""
    names = list(dict.fromkeys(name for labels in every for name in labels))
    values = {name: {labels[name] for labels in every if labels.get(name)} for name in names}
    shown = [name for name in names if len(values[name]) > 1 and name not in ("method", "network", "data")]
    return ["method", *shown] if "method" in names else shown or names[:1]


def _add_published(rows: list[tuple[dict[str, str], dict[str, Any]]], section: Section) -> list[str]:
    """Write published values beside ours, add rows for methods that are not ours, and return the sources."""
    studies = {run.study for run in section.runs} | {plan.study for plan in section.planned}
    sources = []
    for one in PUBLISHED:
        if one.study not in studies or (one.network, one.data) != (section.network, section.data):
            continue
        ratio = f"{one.target_ratio:g}" if one.target_ratio else ""
        same = [numbers for labels, numbers in rows
                if (labels.get("method"), labels.get("target ratio")) == (one.method, ratio)]  # fmt: skip
        if not same and one.method not in OURS:
            same = [{}]
            rows.append(({"method": one.method, "target ratio": ratio}, same[0]))
        for numbers in same:
            numbers["published"] = f"{one.accuracy:.2f}"
            sources.append(f"Published: {one.source}." if one.method in OURS else f"Published, pruning: {one.source}.")
    return sources


def _notes(cells: Sequence[Cell], names: Sequence[str], columns: Sequence[str], options: Options) -> list[str]:
    """Return what must be known of the numbers, in sentences."""
    if not cells:
        return []
    runs = [run for cell in cells for run in cell.runs]
    pairs = "; differences pair by pair of seeds, with their 95 % interval" if "difference" in columns else ""
    metrics = " or ".join(sorted({run.metric for run in runs}))
    where = " or ".join(sorted({str(run.value("validation")) for run in runs}))
    extreme = "highest" if runs[0].higher_is_better else "lowest"
    best = f", best the {extreme} after any" if "best" in columns else ""
    notes = [
        f"{metrics[:1].upper()}{metrics[1:]} on {where}: last is after the last epoch{best}. "
        f"Mean and standard deviation over trials{pairs}."
    ]
    if same := _common(cells, names):
        notes.append(f"All: {', '.join(same)}.")
    for what, read in (("machines", lambda run: run.value("machine")), ("versions of PyTorch", _torch)):
        kinds = sorted({str(read(run)) for run in runs if read(run)})
        if len(kinds) > 1:
            notes.append(f"The runs are of several {what}: {', '.join(kinds)}.")
    for cell in cells:
        if cell.repeated:
            seeds = ", ".join(str(run.seed) for run in cell.repeated)
            what = " ".join(text for _, text in cell.labels if text)
            notes.append(f"Further runs of {what} with seed {seeds} do not count.")
    return notes


def _common(cells: Sequence[Cell], names: Sequence[str]) -> list[str]:
    """Return the labels that all cells share and no row shows, in words. Dense networks have no rank to share."""
    same = []
    for name in (name for name, _ in cells[0].labels if name not in (*names, "network", "data", "method")):
        texts = {cell.label(name) for cell in cells if cell.label(name) or cell.method != "dense"}
        if len(texts) == 1 and texts != {""}:
            same.append(f"{name} {texts.pop()}")
    budgets = {f"{run.results['decay budget']:.3g}" for cell in cells for run in cell.runs
               if isinstance(run.results.get("decay budget"), int | float)}  # fmt: skip
    return same + ([f"decay budget {min(budgets)}"] if len(budgets) == 1 and "decay" in names else [])


def _torch(run: Run) -> Any:
    versions = run.results.get("versions")
    return versions.get("torch") if isinstance(versions, dict) else None


def build_parser() -> Parser:
    """Return the parser of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m paper table", description=__doc__, formatter_class=form)
    add_flags(parser)
    add = parser.add_argument
    add(
        "--compare",
        choices=("last", "best", "mean", "test"),
        default="last",
        help="the number that is compared (default last)",
    )
    add("--columns", nargs="+", default=COLUMNS, metavar="NAME", help=f"some of: {', '.join(COLUMNS)} (default all)")
    add("--missing", action="store_true", help="with --from: also what of the grid has not been run")
    add("--format", choices=list(FORMS), default="text", help=f"{', '.join(FORMS)} (default text)")
    add("--out", type=Path, metavar="FILE", help="write the table into a file")
    return parser


def tables_asked_for(args: argparse.Namespace, home: Path = Path()) -> tuple[list[Table], Found]:
    """Return the tables that the command line asks for, and what they were made of.

    Args:
        home: where relative paths of the command line begin.
    """
    options = Options(tuple(args.by), args.against, args.compare, args.last, tuple(args.columns))
    try:
        where = places(args.places and [home / place for place in args.places], [args.study])
    except UserError:
        where = []  # nothing has been run yet, and the table says how
    found = find(where, args.study)
    return [table_of(section, options) for section in sections(*selected(args, found))], found


def main(argv: list[str] | None = None) -> None:
    """Print, or write, the tables that the command line asks for."""
    args = build_parser().parse_args(argv)
    made, found = tables_asked_for(args)
    text = FORMS[args.format](made)
    # Forms that other programs read stand alone on standard output.
    aside = None if args.out or args.format == "text" else sys.stderr
    warn_of(found, lambda line: print(line, file=aside))
    if args.out:
        try:
            write_whole(args.out, lambda file: file.write(f"{text}\n".encode()))
        except OSError as error:
            raise UserError(f"cannot write {args.out}: {error.strerror}") from None
        print(f"wrote {len(made)} tables to {args.out}")
    else:
        print(text)


if __name__ == "__main__":
    launch(main, "python -m paper table")
