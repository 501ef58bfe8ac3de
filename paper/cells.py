"""Trials of the same thing, grouped: what distinguishes the groups, and what their numbers are."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .finished import ASIDE, Run
from .method import PLAIN, place
from .statistics import Difference, paired_difference

FIELDS = ("network", "data", "layers", "method", "rank scale", "target ratio", "decay", "epochs")
"""What runs are grouped by, besides arguments that differ."""
# Arguments whose effect is in those fields.
_EXPLAINED = {
    "arch", "network", "depth", "wrn_depth", "wrn_width", "dataset", "data", "data_option", "epochs", "epoch", "conv",
    "module", "blocktype", "rank_scale", "target_ratio", "spectral", "spectral_quekey", "spectral_outval", "wd2fd",
    "wd2fd_quekey", "wd2fd_outval", "no_frob", "normalize", "square", "nocrswd", "weight_decay", "decay_budget",
    "frobenius_decay", "mode",
}  # fmt: skip


_DECAYS = ("decay_budget", "frobenius_decay", "weight_decay")  # the first that is given decides


@dataclass(frozen=True)
class Cell:
    """The trials of one thing, one for each seed."""

    labels: tuple[tuple[str, str], ...]
    """What distinguishes it from other cells, by name; an empty text where the name has no meaning for it."""
    runs: tuple[Run, ...]
    """In the order of their seeds."""
    repeated: tuple[Run, ...] = ()
    """Further runs with a seed that is there already, which do not count."""

    def label(self, name: str) -> str:
        """Return one of the labels, nothing if there is no such."""
        return dict(self.labels).get(name, "")

    @property
    def method(self) -> str:
        """Return the method, also where cells are grouped by other things."""
        return self.runs[0].method

    def values(self, what: str, last: int = 5) -> list[float] | None:
        """Return a number of each run, None if one of them has it not.

        Args:
            what: `last` or `best` of the run's metric, `mean` over the last epochs, `test` of what was validated on
                other images, `training loss` of the last epoch, `tokenized BLEU`, `sacreBLEU`, or a field of the
                results.
            last: epochs that `mean` is over; there is none of a run with fewer than twice as many.
        """
        values = [_value(run, what, last) for run in self.runs]
        return values if None not in values else None  # type: ignore[return-value]


def _value(run: Run, what: str, last: int) -> float | None:
    value: Any
    if what == "last":
        value = run.results["final"]
    elif what == "test":
        kind = "error" if "error" in run.metric else "accuracy"
        apart = "held out" in str(run.results.get("validation"))
        value = run.results.get(f"final test {kind}") if apart else None
    elif what == "mean":
        _, curve = metric_curve(run)
        value = sum(curve[-last:]) / last if len(curve) >= 2 * last else None
    elif what == "training loss":
        value = next(reversed(run.curves.get("train/loss", ([], []))[1]), None)
    elif what in ("tokenized BLEU", "sacreBLEU"):
        score = run.evaluation.get(what)
        value = score.get("score") if isinstance(score, dict) else None
    else:
        value = run.results.get(what)
    return _number(value)


def metric_curve(run: Run) -> tuple[list[int], list[float]]:
    """Return the epochs trained and the run's metric then; ([], []) if it was not logged."""
    if "loss" in run.metric:
        tags = [tag for tag in run.curves if tag.endswith("/nll_loss") and not tag.startswith("train")]
        return run.curves[tags[0]] if tags else ([], [])
    indices, accuracies = run.curves.get("valid/accuracy", ([], []))
    values = [100 - value for value in accuracies] if "error" in run.metric else accuracies
    return [index + 1 for index in indices], values


def fields_of(run: Run) -> dict[str, str]:
    """Return what `FIELDS` are of a run, as texts; an empty one where the field has no meaning for it.

    And `arm`, which is the folder that its trials have in common.
    """
    arguments, results = run.arguments, run.results
    network, _, layers = results["network"].partition(" of ")
    ratio = _number(arguments.get("target_ratio")) or 0
    dense = results["method"].startswith("dense")
    return {
        "network": network,
        "data": run.data,
        "layers": "" if dense else layers,
        "method": run.method,
        "rank scale": "" if ratio or layers or not results["rank scale"] else f"{results['rank scale']:g}",
        "target ratio": f"{ratio:g}" if ratio else "",
        "decay": decay_of(run),
        "epochs": f"{results['epochs']:g}",
        "arm": run.name.rpartition("/")[0],
    }


def decay_of(run: Run) -> str:
    """Return what was asked for: the decay budget, as `B 4.1`, or the coefficient."""
    budget, *coefficients = (_number(run.arguments.get(name)) for name in _DECAYS)
    if budget:
        return f"B {budget:.3g}"
    return next((f"{value:g}" for value in coefficients if value is not None), "")


def budget_of(run: Run) -> float | None:
    """Return the decay budget, or where nobody knows it the coefficient."""
    budget = _number(run.results.get("decay budget"))
    if budget is not None:
        return budget
    text = decay_of(run)
    return float(text) if text and not text.startswith("B") else None


def _number(value: Any) -> float | None:
    """Return a finite number, and None for anything else."""
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def group(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Cell]:
    """Return the runs as cells, in the order of their labels.

    Without `by`, runs share a cell if their `FIELDS` are equal and all arguments that could change a number: trials
    differ in nothing but the seed. Arguments that not all of the runs have, such as those of a later version, are left
    out of that.

    Args:
        by: names of fields and arguments to group by, in place of all that.
    """
    names = by or [*FIELDS, *_differing(runs)]
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        fields = fields_of(run)
        key = tuple(fields[name] if name in fields else _text(run.value(name)) for name in names)
        cells.setdefault(key, []).append(run)
    found = [_cell(tuple(zip(names, key)), members) for key, members in cells.items()]
    return sorted(found, key=lambda cell: sort_key(dict(cell.labels)))


def _cell(labels: tuple[tuple[str, str], ...], members: list[Run]) -> Cell:
    one: dict[int, Run] = {}
    repeated = []
    for run in members:
        if one.setdefault(run.seed, run) is not run:
            repeated.append(run)
    return Cell(labels, tuple(one[seed] for seed in sorted(one)), tuple(repeated))


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the arguments that all runs have and that differ, without those that say nothing about the numbers."""
    shared = set.intersection(*(set(run.arguments) for run in runs)) if runs else set()
    names = sorted(shared - ASIDE - _EXPLAINED)
    return [name for name in names if len({_text(run.value(name)) for run in runs}) > 1]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def sort_key(labels: Mapping[str, str]) -> tuple:
    """Return by what rows are sorted: dense networks first, numbers by size, what is missing last, then the method."""
    others = tuple(_sortable(labels.get(name, "")) for name in FIELDS if name != "method")
    more = tuple(_sortable(text) for name, text in labels.items() if name not in FIELDS)
    return (not labels.get("method", "").startswith("dense"), others, place(labels.get("method", "")), more)


def _sortable(text: str) -> tuple:
    try:
        return (0, float(text.removeprefix("B ") or "inf"), text)
    except ValueError:
        return (1, 0.0, text)


@dataclass(frozen=True)
class Comparison:
    """Cells of which some are compared with one of the same kind: the same in all but the method, as far as possible.

    Args:
        cells: all of them.
        against: method of those that others are compared with, or their arm.
        on: the number that is compared, as `Cell.values` takes it.
        last: epochs of a mean.
    """

    cells: Sequence[Cell]
    against: str = PLAIN
    on: str = "last"
    last: int = 5

    @cached_property
    def _bases(self) -> list[Cell]:
        return [cell for cell in self.cells if self._is_base(cell)]

    def _is_base(self, cell: Cell) -> bool:
        return self.against in (cell.method, cell.label("arm"))

    def base(self, cell: Cell) -> Cell | None:
        """Return the cell that `cell` is compared with, None if there is none or it is not clear which.

        A dense network is compared whatever the rank scale, ratio and layers are. Of others, one with the same labels
        is preferred; if there is none, the decay may differ, then other arguments.
        """
        if self._is_base(cell):
            return None
        size = ["rank scale", "target ratio", "layers"] if cell.method.startswith("dense") else []
        steps = [["method", "arm", *size], ["decay"], [name for name, _ in cell.labels if name not in FIELDS]]
        aside: list[str] = []
        found: list[Cell] = []
        while steps and not found:
            aside += steps.pop(0)
            found = _alike(cell, self._bases, aside)
        return found[0] if len(found) == 1 else None

    def difference(self, cell: Cell) -> Difference | None:
        """Return the mean difference over the seeds that both have, None without such."""
        base = self.base(cell)
        if base is None:
            return None
        seeds = [run.seed for run in cell.runs]
        ours, theirs = cell.values(self.on, self.last), base.values(self.on, self.last)
        if ours is None or theirs is None:
            return None
        others = {run.seed: value for run, value in zip(base.runs, theirs)}
        both = [seed for seed in seeds if seed in others]
        mine = dict(zip(seeds, ours))
        return paired_difference([mine[s] for s in both], [others[s] for s in both]) if both else None


def _alike(cell: Cell, others: Iterable[Cell], aside: Sequence[str]) -> list[Cell]:
    """Return the cells whose labels are equal, those in `aside` left out."""
    wanted = [(name, text) for name, text in cell.labels if name not in aside]
    return [other for other in others if all(other.label(name) == text for name, text in wanted)]
