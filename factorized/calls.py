"""Running a model on an example of its inputs, and what that calls."""

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .patterns import wrapped_by
from .usage import shown

Call = tuple[tuple[Tensor, ...], Any]  # tensors among the arguments of a call, and what it returned


def run(model: nn.Module, example_input: Any) -> Any:
    """Return `model(example_input)`; a tuple is positional arguments, and a mapping keyword arguments.

    Raises:
        TypeError: for what is given instead of an input, if the model cannot do with it.
    """
    try:
        if isinstance(example_input, Mapping):
            return model(**example_input)
        return model(*example_input) if isinstance(example_input, tuple) else model(example_input)
    except (TypeError, AttributeError) as error:
        if hint := _no_input(example_input):
            raise TypeError(f"an input is what the model is called with, {hint}") from error
        raise


def _no_input(given: Any) -> str | None:
    """Return in words what was given instead of an input, and what would be right; None for what may be one."""
    if isinstance(given, tuple) and given and all(isinstance(size, int) for size in given):
        return f"not its shape {tuple(given)}: give torch.zeros{tuple(given)}"
    if isinstance(given, numpy.ndarray):
        return "not an array: give torch.from_numpy(array)"
    if isinstance(given, torch.utils.data.DataLoader):
        return "not a DataLoader: give one batch, next(iter(loader))"
    return None if isinstance(given, (Tensor, Mapping, tuple, list)) else f"such as a tensor, not {shown(given)}"


def calls_of(model: nn.Module, modules: set[nn.Module], example_input: Any) -> dict[nn.Module, list[Call]]:
    """Return the calls of `modules` in one pass of an example, and of the output projections of attention."""
    calls: dict[nn.Module, list[Call]] = {}

    def remember(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            named = [kwargs[name] for name in ("query", "key", "value") if name in kwargs]
            args = (*args, *named)[:3]
            calls.setdefault(module.out_proj, []).append(((), output[0]))
        else:
            args = (*args, *kwargs.values())
        calls.setdefault(module, []).append((tuple(a for a in args if isinstance(a, Tensor)), output))

    handles = [module.register_forward_hook(remember, with_kwargs=True) for module in modules]
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    bare = model  # a compiled program does not come by the hooks
    while (wrapper := wrapped_by(bare)) in ("_orig_mod", "module"):
        bare = bare.get_submodule(wrapper)
    try:
        run(bare, example_input)
    finally:
        for module in in_training:
            module.training = True
        for handle in handles:
            handle.remove()
    return calls
