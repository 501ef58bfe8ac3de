"""Figures from the event files of runs."""

from collections.abc import Mapping
from pathlib import Path

from lab.checkpoint import write_whole


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


def curves(runs: Mapping[str, Path], tags: Mapping[str, str], path: Path) -> None:
    """Draw one panel for each tag, with a curve for each run, and write it to `path` as PNG.

    Args:
        runs: folder of each run, by its label.
        tags: label of each panel's vertical axis, by its tag.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tags), figsize=(5 * len(tags), 4), squeeze=False, layout="constrained")
    for axis, (tag, label) in zip(axes[0], tags.items()):
        for name, folder in runs.items():
            axis.plot(*scalars(folder, tag), label=name)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
    axes[0][0].legend()
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))
    pyplot.close(figure)
