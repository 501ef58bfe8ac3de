"""The panels of figures: the course of training, the norms of the layers, final numbers against size or decay."""

import math
from collections.abc import Callable, Mapping, Sequence

from .cells import Cell, Comparison, budget_of, metric_curve
from .charts import Line, Panel
from .events import Curves
from .finished import Run
from .method import PLAIN, is_student
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
