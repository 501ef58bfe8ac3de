"""Which cells belong into one figure or panel, and what tells it from the others."""

from collections.abc import Iterator, Mapping, Sequence

from .cells import Cell
from .finished import Run
from .method import DEEP, is_of_normalization, start_of

SIZES = ("rank scale", "target ratio")
_MOST = 8
"""Methods whose lines can be told apart in one panel, deep ones aside, which look like the others, but thin."""


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


def courses(cells: Sequence[Cell]) -> Iterator[tuple[dict[str, str], list[Cell]]]:
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


def experiments(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Yield the usual cells, in parts if those are many, and the arms of the normalization experiment.

    These have the Frobenius decay beside them that they go by. Each comes with the part of a name.
    """
    usual_ones = usual(cells)
    yield from by_start(usual_ones).items()
    arms = [cell for cell in cells if cell not in usual_ones]
    gone_by = {"SI & FD" if cell.method.startswith("SI") else "FD" for cell in arms}
    if arms:
        yield "normalization", [cell for cell in usual_ones if cell.method in gone_by] + arms


def by_start(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return the cells by how their factors start if they have too many methods for one panel, else all as ""."""
    if len({cell.method.removeprefix(DEEP) for cell in cells}) <= _MOST:
        return {"": list(cells)} if cells else {}
    starts = dict.fromkeys(start_of(cell.method) for cell in cells)
    return {start: [cell for cell in cells if cell.method == "dense" or start_of(cell.method) == start]
            for start in starts}  # fmt: skip


def by_kind(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return the cells by the kind of their layers, if they are of several, with the dense ones each time."""
    kinds = dict.fromkeys(cell.label("layers").partition("_")[0] for cell in cells if cell.label("layers"))
    dense = [cell for cell in cells if cell.method.startswith("dense")]
    found = {kind: [*dense, *(cell for cell in cells if cell.label("layers").partition("_")[0] == kind)]
             for kind in kinds}  # fmt: skip
    return found or by_start(cells)


def by_name(cells: Sequence[Cell], names: Sequence[str]) -> dict[str, list[Run]]:
    """Return the trials by the labels of those names, or by method."""
    found: dict[str, list[Run]] = {}
    for cell in cells:
        name = ", ".join(filter(None, (cell.label(part) for part in names))) or cell.method
        found.setdefault(name, []).extend(cell.runs)
    return found


def where(common: Mapping[str, str], cells: Sequence[Cell]) -> str:
    """Return what tells a facet from the others, for the name of a file."""
    several = {name for name in common if len({cell.label(name) for cell in cells} - {""}) > 1}
    return "-".join(f"{name}_{text}" for name, text in common.items() if name in several)
