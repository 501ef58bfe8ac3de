"""What a run has logged over its epochs."""

import logging
from pathlib import Path

from lab.cli import UserError

Curves = dict[str, tuple[list[int], list[float]]]
"""Steps and values by TensorBoard tag."""


def curves_of_events(folder: Path) -> Curves:
    """Return all that is in the TensorBoard events of a run's folder, {} if there are none.

    Raises:
        UserError: if an event file cannot be read.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.*")):
        return {}
    # A resumed run has logged some steps twice; the later ones count, and it would warn of the others.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    try:
        events.Reload()
    except Exception as error:  # of many types, from the reading of damaged bytes
        raise UserError(f"the events in {folder} cannot be read ({type(error).__name__})") from None
    curves: Curves = {}
    for tag in events.Tags()["scalars"]:
        logged = events.Scalars(tag)
        curves[tag] = [event.step for event in logged], [event.value for event in logged]
    return curves


def scalars(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Return the steps and values that a run has logged under `tag`.

    Raises:
        KeyError: if nothing was logged under it.
    """
    return curves_of_events(folder)[tag]


def mean_over_layers(curves: Curves) -> Curves:
    """Return the curves with those of single layers, `layers/NAME/METRIC`, replaced by their mean, `layers/METRIC`."""
    single: dict[str, list[tuple[list[int], list[float]]]] = {}
    kept: Curves = {}
    for tag, curve in curves.items():
        parts = tag.split("/")
        if parts[0] == "layers" and len(parts) > 2:
            single.setdefault(f"layers/{parts[-1]}", []).append(curve)
        else:
            kept[tag] = curve
    for tag, found in single.items():
        steps = found[0][0]
        if tag not in kept and all(curve[0] == steps for curve in found):
            kept[tag] = (steps, [sum(values) / len(values) for values in zip(*(curve[1] for curve in found))])
    return kept
