"""Drawing for eyes of any kind: readable without colour, and each line has its name beside it."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from lab.checkpoint import write_whole

from .method import DEEP

# Okabe and Ito's colours, which the colour-blind can tell apart; dashes and marks tell them apart without colour. The
# last is the colour of the name, which must be darker than a line where that is light.
_STYLES: tuple[tuple[str, Any, str, str], ...] = (
    ("#000000", "-", "o", "#000000"),
    ("#D55E00", "--", "s", "#B34F00"),
    ("#0072B2", "-.", "^", "#0072B2"),
    ("#E69F00", ":", "D", "#946600"),
    ("#009E73", (0, (6, 1)), "v", "#007556"),
    ("#CC79A7", (0, (3, 1, 1, 1, 1, 1)), "P", "#A34B7C"),
    ("#56B4E9", (0, (1, 1)), "X", "#1F7AAD"),
    ("#7F7F7F", (0, (8, 2, 1, 2)), "*", "#5F5F5F"),
)
_OF_METHODS = {name: _STYLES[index] for index, name in enumerate(("dense", "plain", "SI", "FD", "SI & FD"))}
_COLUMNS = 3
"""Panels beside each other."""


@dataclass(frozen=True)
class Line:
    """What is drawn of one method."""

    name: str
    x: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    """For each of `x`, those of the trials."""
    bars: tuple[float, ...] | None = None
    """Half the length of each bar, if it is not the standard deviation."""

    @property
    def is_thin(self) -> bool:
        """Return whether the line looks like another one, but thin."""
        return self.name.startswith(DEEP)

    @property
    def means(self) -> list[float]:
        """Return the mean for each of `x`."""
        return [float(numpy.mean(values)) for values in self.values]


@dataclass(frozen=True)
class Panel:
    """One coordinate system.

    Attributes:
        points: the values are those of separate runs, drawn as marks with bars, which are the standard deviation if
            nothing else is said; otherwise of the course of runs, drawn as a line with a band from the least to the
            largest value.
        logarithmic: the horizontal axis.
        decades: the vertical axis is logarithmic, if no value is below zero.
        level: a value that is drawn across, with its name.
        alike: panels beside each other that all are have the same vertical axis.
    """

    title: str
    x_label: str
    lines: tuple[Line, ...]
    points: bool = False
    logarithmic: bool = False
    decades: bool = False
    level: tuple[str, float] | None = None
    alike: bool = False

    def places(self, line: Line) -> list[float]:
        """Return where the values of a line are drawn: those of separate runs beside each other, so that no bar hides
        another."""
        if not self.points:
            return list(line.x)
        every = sorted({x for other in self.lines for x in other.x})
        step = min(0.014, 0.07 / len(self.lines))  # as a share of the whole width
        share = (self.lines.index(line) - (len(self.lines) - 1) / 2) * step
        if self.logarithmic:
            return [x * (every[-1] / every[0]) ** share for x in line.x]
        return [x + (every[-1] - every[0]) * share for x in line.x]


def styles(names: Iterable[str]) -> dict[str, tuple[str, Any, str, str]]:
    """Return the styles of lines: those of the paper's methods are always the same, and black is the dense one's."""
    names = list(dict.fromkeys(names))
    known = {name: _OF_METHODS.get(name.removeprefix(DEEP)) for name in names}
    free = itertools.cycle([style for style in _STYLES[1:] if style not in known.values()] or _STYLES[1:])
    return {name: known[name] or next(free) for name in names}


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels side by side, in rows of three, into `path`, a PNG file, and beside it the same as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    names = {panel: [line.name for line in panel.lines] for panel in panels}
    every = styles(itertools.chain(*names.values()))
    # One style a name in all panels, unless there are more names than styles.
    style = {panel: every if len(every) <= len(_STYLES) else styles(names[panel]) for panel in panels}
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    # Text stays text, and the same numbers give the same bytes.
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "factorized", "font.size": 9}):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(5.0 * columns, 3.9 * rows), squeeze=False, layout="constrained",
            sharey=all(panel.alike for panel in panels),
        )  # fmt: skip
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, panel in zip(axes.flat, panels):
            (_draw_points if panel.points else _draw_courses)(axis, panel, style[panel])
        for axis, panel in zip(axes.flat, panels):
            axis.set_title(panel.title, fontsize=10, loc="left")
            axis.set_xlabel(panel.x_label)
            if panel.logarithmic:
                _logarithmic(axis, sorted({x for line in panel.lines for x in line.x}))
            else:
                axis.xaxis.set_major_locator(MaxNLocator(integer=not panel.points))
            if panel.decades and all(value > 0 for line in panel.lines for values in line.values for value in values):
                _decades(axis)
            axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            _name(axis, panel, style[panel])
        for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            save = partial(figure.savefig, format=form, dpi=120, metadata=metadata)
            write_whole(path.with_suffix(f".{form}"), save)
        pyplot.close(figure)


def _draw_courses(axis, panel: Panel, style: dict) -> None:
    for line in panel.lines:
        color, dashes, _, _ = style[line.name]
        axis.plot(line.x, line.means, color=color, linestyle=dashes, linewidth=0.9 if line.is_thin else 1.8)
        low, high = [min(values) for values in line.values], [max(values) for values in line.values]
        axis.fill_between(line.x, low, high, color=color, alpha=0.13, linewidth=0)


def _draw_points(axis, panel: Panel, style: dict) -> None:
    for line in panel.lines:
        color, dashes, mark, _ = style[line.name]
        bars = line.bars or [float(numpy.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in line.values]
        shown = {"color": color, "linestyle": dashes, "linewidth": 1.5, "marker": mark, "markersize": 5}
        if line.is_thin:
            shown |= {"linewidth": 0.8, "markerfacecolor": "white"}
        axis.errorbar(panel.places(line), line.means, yerr=bars, capsize=2.5, elinewidth=1, **shown)
    if panel.level:
        axis.axhline(panel.level[1], color="#000000", linewidth=1, zorder=1)


def _decades(axis) -> None:
    """Make the vertical axis logarithmic, with plain numbers at a few round values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    decades = numpy.log10(high / low)
    choices = {1: (1, 2, 3, 4, 5, 7), 2: (1, 2, 5), 3: (1, 3)}  # by the number of decades that is not reached
    steps = next((steps for most, steps in choices.items() if decades < most), (1,))
    axis.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _logarithmic(axis, places: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with ticks at the places that there are, as far as there is room."""
    from matplotlib.ticker import NullLocator

    ticks = [places[0]]
    for place in places[1:]:
        if numpy.log(place / ticks[-1]) > 0.09 * numpy.log(places[-1] / places[0]):
            ticks.append(place)
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    if len(places) > 1:
        room = (places[-1] / places[0]) ** 0.07
        axis.set_xlim(places[0] / room, places[-1] * room)


def _name(axis, panel: Panel, style: dict) -> None:
    """Write each line's name beside its last value, with a thread to it; names that would overlap are moved apart."""
    ends = [(line.means[-1], panel.places(line)[-1], line.name, style[line.name][3]) for line in panel.lines if line.x]
    if panel.level:
        ends.append((panel.level[1], max((x for _, x, _, _ in ends), default=0.0), panel.level[0], "#000000"))
    ends.sort()
    limits = axis.get_xlim(), axis.get_ylim()  # which reading them settles
    shares = [axis.transAxes.inverted().transform(axis.transData.transform((x, y)))[1] for y, x, _, _ in ends]
    for height, (value, x, name, color) in zip(_apart(shares, 0.058), ends):
        thread = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 2}
        thread["relpos"] = (0, 0.5)  # from the left of the name, so that it crosses no other one
        axis.annotate(
            name, (x, value), (1.03, height), xycoords="data", textcoords="axes fraction", color=color, fontsize=9,
            va="center", annotation_clip=False, arrowprops=thread,
        )  # fmt: skip
    axis.set(xlim=limits[0], ylim=limits[1])


def _apart(shares: Sequence[float], least: float) -> list[float]:
    """Return rising heights at least `least` apart, moved as little as possible: a crowd stays around its middle.

    All are between 0 and 1, as long as there is room.
    """
    crowds: list[list[float]] = []
    for share in shares:
        crowds.append([share])
        while len(crowds) > 1 and _span(crowds[-2], least)[1] + least > _span(crowds[-1], least)[0]:
            last = crowds.pop()
            crowds[-1] += last
    return [_span(crowd, least)[0] + index * least for crowd in crowds for index in range(len(crowd))]


def _span(crowd: Sequence[float], least: float) -> tuple[float, float]:
    width = least * (len(crowd) - 1)
    low = max(0.0, min(sum(crowd) / len(crowd) - width / 2, 1.0 - width))
    return low, low + width
