"""Figures of a study, as PNG and SVG, from runs or records of them.

    python -m paper figures pytorch_resnet_cifar10 --from results/resnet20-cifar10 --out docs/pictures

Of each network and data set: the course of training, the norms of the layers (pictures of their own for each size),
and the final accuracy or BLEU against size and decay, where runs with several are there.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from lab.cli import Parser, UserError, launch

from .cells import Cell, Comparison, budget_of, group, metric_curve
from .charts import Line, Panel, draw
from .events import Curves
from .finished import Run
from .method import PLAIN, is_of_normalization, is_student
from .results import warn_of
from .runs import find, places
from .scripts import ROOT
from .selection import Section, add_flags, sections, selected
from .statistics import Difference

NORMS = {
    "metric/FrobNorm": "mean Frobenius norm of the layers",
    "layers/nuclear-over-bound": "nuclear norm over its bound",
    "hyper/lr-eff_frobsq": "effective step size, lr / |W|²",
    "FrobNorm/QueKey": "mean Frobenius norm of query-key products",
    "FrobNorm/OutVal": "mean Frobenius norm of output-value products",
    "FrobNorm/Linear": "mean Frobenius norm of linear layers",
}
"""Titles of the panels about layers, by tag."""
SIZES = ("rank scale", "target ratio")


def course(
    curves: Mapping[str, Sequence[Curves]], tag: str, title: str, offset: int = 0, decades: bool = False
) -> Panel | None:
    """Return the panel of what the trials of each method have logged under a tag, None if none of them has.

    Args:
        curves: of the trials of each method, by its name.
        offset: added to the steps: 1 for what is logged under the index of the epoch that it ends.
        decades: whether the vertical axis is logarithmic.
    """
    lines = []
    for name, trials in curves.items():
        logged = [dict(zip(*trial[tag])) for trial in trials if tag in trial]
        steps = sorted(set.intersection(*map(set, logged))) if logged else []
        if steps := [step for step in steps if all(math.isfinite(one[step]) for one in logged)]:
            values = tuple(tuple(one[step] for one in logged) for step in steps)
            lines.append(Line(name, tuple(float(step + offset) for step in steps), values))
    return Panel(title, "epochs trained", tuple(lines), decades=decades) if lines else None


def facets(cells: Sequence[Cell], aside: Sequence[str]) -> Iterator[tuple[dict[str, str], list[Cell]]]:
    """Yield the cells that differ in nothing but the method and what is `aside`, with what they have in common.

    Dense networks belong to all sizes.
    """
    names = [name for name, _ in cells[0].labels if name not in ("method", "network", "data", *aside)]
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if not cell.method.startswith("dense"):
            groups.setdefault(tuple(cell.label(name) for name in names), []).append(cell)
    dense = [cell for cell in cells if cell.method.startswith("dense")]
    for key, members in groups.items() or [((), [])]:
        common = {name: text for name, text in zip(names, key) if text}
        fitting = {name: text for name, text in common.items() if name not in (*SIZES, "layers")}
        yield common, [cell for cell in dense if all(cell.label(n) in ("", t) for n, t in fitting.items())] + members


def _courses(cells: Sequence[Cell]) -> Iterator[tuple[dict[str, str], list[Cell]]]:
    """Yield facets whose lines are told apart by the method alone: decay is no condition where each has one of it."""
    for common, members in facets(cells, ["decay"]):
        methods = [cell.method for cell in members]
        if len(set(methods)) == len(methods):
            yield common, members
        else:
            yield from facets(members, [])


def usual(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of all methods but the arms of the normalization experiment, which has one size and decay."""
    return [cell for cell in cells if not is_of_normalization(cell.method)]


def _experiments(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Yield the usual cells, and the arms of the normalization experiment with the Frobenius decay that they go by.

    Each comes with the part of a name.
    """
    usual_ones = usual(cells)
    yield "", usual_ones
    arms = [cell for cell in cells if cell not in usual_ones]
    gone_by = {"SI & FD" if cell.method.startswith("SI") else "FD" for cell in arms}
    if arms:
        yield "normalization", [cell for cell in usual_ones if cell.method in gone_by] + arms


def learning_curves(runs: Mapping[str, Sequence[Run]]) -> list[Panel]:
    """Return the panels of training loss and of the metric after each epoch, of the trials of each method."""
    first = next(iter(runs.values()))[0]
    logged = {name: [{**run.curves, "metric": metric_curve(run)} for run in trials] for name, trials in runs.items()}
    # A student's loss is another one: that of the labels and that of the transfer together.
    taught = {name: curves for name, curves in logged.items() if is_student(name)}
    others = {name: curves for name, curves in logged.items() if name not in taught}
    panels = [course(others, "train/loss", "training loss", 1 + _before(first))]
    panels += [course(taught, "train/loss", "training loss with the transfer's", 1 + _before(first))]
    return [panel for panel in (*panels, course(logged, "metric", first.metric)) if panel]


def norms(runs: Mapping[str, Sequence[Run]]) -> list[Panel]:
    """Return the panels of `NORMS`, of runs that have logged them."""
    logged = {name: [run.curves for run in trials] for name, trials in runs.items()}
    before = _before(next(iter(runs.values()))[0])
    panels = (course(logged, tag, title, before, decades="bound" not in tag) for tag, title in NORMS.items())
    return [panel for panel in panels if panel]


def _before(run: Run) -> int:
    """Return what makes epochs that are trained of the steps at which something is logged before an epoch."""
    return -1 if run.study == "Transformer-PyTorch" else 0  # which counts epochs from 1


def by_name(cells: Sequence[Cell], names: Sequence[str]) -> dict[str, list[Run]]:
    """Return the trials by the labels of those names, or by method."""
    found: dict[str, list[Run]] = {}
    for cell in cells:
        name = ", ".join(filter(None, (cell.label(part) for part in names))) or cell.method
        found.setdefault(name, []).extend(cell.runs)
    return found


def against(
    cells: Sequence[Cell], what: str, title: str, x_label: str, x_of: Callable[[Run], float | None], last: int
) -> Panel | None:
    """Return the panel of a final number against something else, None unless a method has it at two places.

    A dense network that has no such place is drawn across.

    Args:
        what: the number, as `Cell.values` takes it.
        x_of: the place of a cell, from its first run.
    """
    at_place: dict[str, dict[float, tuple[float, ...]]] = {}
    level: tuple[str, float] | None = None
    for cell in cells:
        values, x = cell.values(what, last), x_of(cell.runs[0])
        if values and cell.method.startswith("dense") and "decay" not in x_label:
            level = (cell.method, sum(values) / len(values))
        elif values and x:
            at_place.setdefault(cell.method, {})[x] = tuple(values)
    lines = [Line(name, tuple(sorted(at)), tuple(at[x] for x in sorted(at))) for name, at in at_place.items()]
    if not any(len(line.x) > 1 for line in lines):
        return None
    return Panel(title, x_label, tuple(lines), points=True, logarithmic=True, level=level)


def figures_of(section: Section, args: argparse.Namespace) -> Iterator[tuple[str, list[Panel]]]:
    """Yield the figures of a section: the last part of the name of the file, and the panels."""
    cells = group(section.runs, args.by)
    if args.by:
        yield from _of_course("", by_name(cells, args.by))
        return
    for common, members in _courses(cells):
        for experiment, chosen in _experiments(members):
            if chosen:
                yield from _of_course(f"{_where(common, cells)}-{experiment}", by_name(chosen, ["method"]))
    if not (cells := usual(cells)):
        return
    metric = section.runs[0].metric.replace("validation ", "")
    bleu = any(cell.values("tokenized BLEU") for cell in cells)
    numbers = [("tokenized BLEU", "BLEU of tokens")] if bleu else [("last", f"{metric}, last epoch")]
    if all(cell.values("mean", args.last) for cell in cells) and not bleu:
        numbers.append(("mean", f"{metric}, mean of the last {args.last} epochs"))
    yield from _against_size(cells, numbers, args.last)
    yield from _against_decay(cells, numbers, args.last)


def _of_course(name: str, runs: Mapping[str, Sequence[Run]]) -> Iterator[tuple[str, list[Panel]]]:
    yield f"{name}-curves", learning_curves(runs)
    yield f"{name}-norms", norms(runs)


def _against_size(cells: Sequence[Cell], numbers: Sequence[tuple[str, str]], last: int) -> Iterator:
    scaled = {cell.runs[0].results["rank scale"] for cell in cells if cell.label("rank scale")}
    axes: list[tuple[str, str, Callable[[Run], float | None]]] = [
        ("ratio", "parameters, as a ratio of the dense network's", lambda run: run.results["ratio"])
    ]
    if len(scaled) > 1:
        axes.append(("rank-scale", "rank scale", lambda run: run.results["rank scale"]))
    for common, members in facets(cells, [*SIZES, "layers"]):
        kinds = _by_kind(members)
        for (name, label, x_of), chosen in product(axes, [numbers] if len(kinds) == 1 else [[one] for one in numbers]):
            panels = [against(of_kind, what, kind + title, label, x_of, last)
                      for what, title in chosen for kind, of_kind in kinds.items()]  # fmt: skip
            panels = [replace(panel, alike=len(kinds) > 1) for panel in panels if panel]
            which = "" if chosen[0] == numbers[0] else f"-{chosen[0][0]}"
            yield f"{_where(common, cells)}-against-{name}{which}", panels


def _by_kind(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return the cells by the beginning of a title that says which kind of layers they have, dense ones with each."""
    kinds = dict.fromkeys(cell.label("layers").partition("_")[0] for cell in cells if cell.label("layers"))
    dense = [cell for cell in cells if cell.method.startswith("dense")]
    found = {f"{kind}: ": [*dense, *(cell for cell in cells if cell.label("layers").partition("_")[0] == kind)]
             for kind in kinds}  # fmt: skip
    return found or {"": list(cells)}


def _against_decay(cells: Sequence[Cell], numbers: Sequence[tuple[str, str]], last: int) -> Iterator:
    known = all(isinstance(run.results.get("decay budget"), int | float) for cell in cells for run in cell.runs)
    label = "decay budget" if known else "decay coefficient"
    for common, members in facets(cells, ["decay"]):
        panels = [against(members, what, title, label, budget_of, last) for what, title in numbers]
        panels += [gain_of_frobenius(members, what, title, label, last) for what, title in numbers[-1:]]
        yield f"{_where(common, cells)}-against-decay", [panel for panel in panels if panel]


def gain_of_frobenius(cells: Sequence[Cell], what: str, title: str, x_label: str, last: int) -> Panel | None:
    """Return the panel of what Frobenius decay gains over L2 decay of the same budget, None without two budgets.

    Differences are of equal seeds; bars are their 95 % interval, and a place with a single pair has none.
    """
    lines = []
    for base, method in ((PLAIN, "FD"), ("SI", "SI & FD")):
        compared = Comparison([cell for cell in cells if cell.method in (base, method)], base, what, last)
        found: dict[float | None, Difference | None] = {}
        for cell in compared.cells:
            other, budget = compared.base(cell), budget_of(cell.runs[0])
            if other and budget_of(other.runs[0]) == budget:
                found[budget] = compared.difference(cell)
        at = {x: difference for x, difference in found.items() if x and difference}
        at = dict(sorted(at.items()))
        if len(at) > 1:
            bars = tuple(d.half_width if math.isfinite(d.half_width) else 0.0 for d in at.values())
            lines.append(Line(method, tuple(at), tuple((d.mean,) for d in at.values()), bars))
    heading = f"FD less L2: {title}"
    return Panel(heading, x_label, tuple(lines), True, True, level=("equal", 0.0)) if lines else None


def _where(common: Mapping[str, str], cells: Sequence[Cell]) -> str:
    """Return what tells a facet from the others, for the name of a file."""
    several = {name for name in common if len({cell.label(name) for cell in cells} - {""}) > 1}
    return "-".join(f"{name}_{text}" for name, text in common.items() if name in several)


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
