"""Figures of a study, as PNG and SVG, from runs or records of them.

    python -m paper figures pytorch_resnet_cifar10 --from results/resnet20-cifar10 --out docs/pictures

Of each network and data set: the course of training, the norms of the layers (pictures of their own for each size),
and the final accuracy or BLEU against size and decay, where runs with several are there.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lab.cli import Parser, UserError, launch

from .cells import Cell, budget_of, group
from .charts import Panel, draw
from .finished import Run
from .panels import against, gain_of_frobenius, learning_curves, norms
from .parts import SIZES, by_kind, by_name, courses, experiments, facets, usual, where
from .results import warn_of
from .runs import find, places
from .scripts import ROOT
from .selection import Section, add_flags, sections, selected

Figures = Iterator[tuple[str, list[Panel]]]
Numbers = Sequence[tuple[str, str]]  # as `Cell.values` takes them, with their titles


def figures_of(section: Section, args: argparse.Namespace) -> Figures:
    """Yield the figures of a section: the last part of the name of the file, and the panels."""
    cells = group(section.runs, args.by)
    if args.by:
        yield from _of_course("", by_name(cells, args.by))
        return
    for common, members in courses(cells):
        for experiment, chosen in experiments(members):
            yield from _of_course(f"{where(common, cells)}-{experiment}", by_name(chosen, ["method"]))
    if not (cells := usual(cells)):
        return
    metric = section.runs[0].metric.replace("validation ", "")
    bleu = any(cell.values("tokenized BLEU") for cell in cells)
    numbers = [("tokenized BLEU", "BLEU of tokens")] if bleu else [("last", f"{metric}, last epoch")]
    if all(cell.values("mean", args.last) for cell in cells) and not bleu:
        numbers.append(("mean", f"{metric}, mean of the last {args.last} epochs"))
    yield from _against_size(cells, numbers, args.last)
    yield from _against_decay(cells, numbers, args.last)


def _of_course(name: str, runs: Mapping[str, Sequence[Run]]) -> Figures:
    yield f"{name}-curves", learning_curves(runs)
    yield f"{name}-norms", norms(runs)


def _against_size(cells: Sequence[Cell], numbers: Numbers, last: int) -> Figures:
    scaled = {cell.runs[0].results["rank scale"] for cell in cells if cell.label("rank scale")}
    axes: list[tuple[str, str, Callable[[Run], float | None]]] = [
        ("ratio", "parameters, as a ratio of the dense network's", lambda run: run.results["ratio"])
    ]
    if len(scaled) > 1:
        axes.append(("rank-scale", "rank scale", lambda run: run.results["rank scale"]))
    for common, members in facets(cells, [*SIZES, "layers"]):
        for name, label, x_of in axes:
            for which, panels in _in_parts(members, numbers, label, x_of, last):
                yield f"{where(common, cells)}-against-{name}{which}", panels


def _against_decay(cells: Sequence[Cell], numbers: Numbers, last: int) -> Figures:
    known = all(isinstance(run.results.get("decay budget"), int | float) for cell in cells for run in cell.runs)
    label = "decay budget" if known else "decay coefficient"
    for common, members in facets(cells, ["decay"]):
        name = f"{where(common, cells)}-against-decay"
        gain = [
            panel for what, title in numbers[-1:] if (panel := gain_of_frobenius(members, what, title, label, last))
        ]
        for which, panels in _in_parts(members, numbers, label, budget_of, last):
            if panels and not panels[0].alike:
                panels, gain = panels + gain, []
            yield f"{name}{which}", panels
        yield f"{name}-gain", gain


def _in_parts(
    cells: Sequence[Cell], numbers: Numbers, x_label: str, x_of: Callable[[Run], float | None], last: int
) -> Figures:
    """Yield a figure of the numbers, or one of each if the cells are in parts, which then have panels of their own."""
    parts = by_kind(cells)
    for chosen in [numbers] if len(parts) == 1 else [[number] for number in numbers]:
        panels = [
            against(members, what, ": ".join(filter(None, (part, title))), x_label, x_of, last)
            for what, title in chosen
            for part, members in parts.items()
        ]
        which = "" if chosen[0] == numbers[0] else f"-{chosen[0][0]}"
        yield which, [replace(panel, alike=len(parts) > 1) for panel in panels if panel]


def file_name(*parts: str) -> str:
    """Return parts as the name of a file, without what is awkward in one."""
    return re.sub(r"-+", "-", re.sub(r"[^\w.+-]+", "-", "-".join(parts))).strip("-")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m paper figures", description=__doc__, formatter_class=form)
    add_flags(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the figures (default: STUDY/results/figures)"
    )
    parser.set_defaults(missing=False)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Draw the figures that the command line asks for."""
    args = build_parser().parse_args(argv)
    folder = args.out or ROOT / args.study / "results" / "figures"
    found = find(places(args.places, [args.study]), args.study)
    warn_of(found, print)
    runs, _ = selected(args, found)
    made = []
    for section in sections(runs):
        for name, panels in figures_of(section, args):
            if panels:
                path = folder / f"{file_name(section.network, section.data, name)}.png"
                write(panels, path)
                made.append(path)
    if not made:
        raise UserError("there is nothing to draw: no run of these has logged anything, and none was run at two sizes")
    print("\n".join(f"{path} and .svg" for path in made))


def write(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels into a file whose folder may have to be made.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(panels, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


if __name__ == "__main__":
    launch(main, "python -m paper figures")
