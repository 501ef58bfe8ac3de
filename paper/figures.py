"""Figures from the event files of runs, for eyes of any kind: readable without colour, and each curve has its name."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from lab.checkpoint import write_whole

# Okabe and Ito's colours, which the colour-blind can tell apart; the dashes tell them apart without colour.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": "--"},
    {"color": "#0072B2", "linestyle": "-."},
    {"color": "#E69F00", "linestyle": ":"},
    {"color": "#009E73", "linestyle": (0, (6, 1))},
    {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
)


def scalars(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Return the steps and values logged under `tag` in the TensorBoard events of a run's folder.

    Raises:
        KeyError: if nothing was logged under it.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    logged = events.Scalars(tag)
    return [event.step for event in logged], [event.value for event in logged]


def curves(runs: Mapping[str, Sequence[Path]], panels: Mapping[str, str], path: Path, offset: int = 0) -> None:
    """Draw a panel for each tag, with the mean over the trials of each method and a band from least to most.

    Args:
        runs: folders of the trials of each method, by its label.
        panels: title of each panel, by its tag.
        path: gets a PNG file, and beside it the same as SVG.
        offset: added to the steps: 1 for what is logged under the index of the epoch that it ends.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.4 * len(panels), 4.2), squeeze=False, layout="constrained"
    )
    for axis, (tag, title) in zip(axes[0], panels.items()):
        ends = []
        for (name, folders), style in zip(runs.items(), STYLES * (1 + len(runs) // len(STYLES))):
            logged = [scalars(folder, tag) for folder in folders]
            steps = numpy.array(logged[0][0]) + (offset if tag.startswith(("train", "valid")) else 0)
            values = numpy.array([values for _, values in logged])
            axis.plot(steps, values.mean(0), linewidth=1.8, **style)
            axis.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.12, linewidth=0)
            ends.append((values.mean(0)[-1], name, style["color"]))
        _label(axis, ends, steps[-1])
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("epochs trained")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    for form in ("png", "svg"):
        write_whole(path.with_suffix(f".{form}"), partial(figure.savefig, format=form, dpi=120))
    pyplot.close(figure)


def _label(axis, ends: Sequence[tuple[float, str, str]], x: float) -> None:
    """Write each curve's name to the right of its last value; names that would overlap are moved apart."""
    low, high = axis.get_ylim()
    apart = (high - low) * 0.055
    height = -numpy.inf
    for value, name, color in sorted(ends):
        height = max(value, height + apart)
        axis.annotate(
            name, (x, value), (1.02, height), xycoords="data", textcoords=axis.get_yaxis_transform(), color=color,
            fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip
