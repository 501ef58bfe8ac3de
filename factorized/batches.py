"""Running a model over data, which leaves its mode as it was."""

import contextlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .calls import run

Batches = Iterable[Any] | Callable[[], object]


def run_over(model: nn.Module, batches: Batches, training: Iterable[nn.Module]) -> None:
    """Run a model over batches, in evaluation mode but for the modules of `training`; or call the function.

    Raises:
        TypeError: for batches that cannot be iterated or called without arguments, or that the model does not take.
        ValueError: if there are none.
    """
    modes = {module: module.training for module in model.modules()}
    if callable(batches):
        _check_function(batches)
        for module in training:
            module.train()
        with _modes_kept(modes):
            batches()
        return
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        given = f"one {type(batches).__name__}"
        raise TypeError(f"batches is an iterable of inputs, or a function that runs the model, not {given}")
    with _modes_kept(modes), torch.no_grad():
        model.eval()
        for module in training:
            module.train()
        number = 0
        for batch in _shown(batches):
            _run_batch(model, batch)
            number += 1
    if number == 0:
        raise ValueError("batches is empty: there is nothing to run the model over")


def _check_function(batches: Callable[..., object]) -> None:
    """Raise TypeError for a function that needs arguments."""
    try:
        parameters = inspect.signature(batches).parameters.values()
    except ValueError:  # of a function that does not tell
        return
    optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in optional]
    if needed:
        raise TypeError(
            "a function given as batches takes no arguments and runs the model itself, as "
            f"lambda: [model(x) for x in data]; this one needs {', '.join(needed)}"
        )


def _run_batch(model: nn.Module, batch: Any) -> None:
    try:
        run(model, batch[0] if isinstance(batch, list) else batch)
    except TypeError as error:
        if not isinstance(batch, tuple):
            raise
        raise TypeError(
            f"{error}: a tuple holds the model's positional arguments; a list [inputs, targets] has its first run"
        ) from error


@contextlib.contextmanager
def _modes_kept(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _shown(batches: Iterable[Any]) -> Iterable[Any]:
    """Return the batches, with a progress bar on a terminal if there is a package for it."""
    if importlib.util.find_spec("tqdm") is None:
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc="statistics", unit="batch", leave=False, disable=None)
