"""Messages for calls that cannot be meant: what was given, and what would be right."""

import difflib
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

# What is often written instead of an argument, and what says it.
_MEANT = {
    "rank": "ranks={'**': 8} gives every layer a rank, rank_scale=0.1 a fraction of its dimension",
    "scale": "rank_scale=0.1 is a rank as a fraction of a dimension",
    "layers": "include=['layer*.*.conv1'] chooses layers by name",
    "skip": "exclude=['fc'] leaves layers dense",
    "weight_decay": "the strength of Frobenius decay is its coefficient",
    "optimizer": "attach(optimizer) lets an optimizer decay",
}


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` with errors of its argument list that say which arguments there are."""
    signature = inspect.signature(function)
    called = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(_help(called, signature, args, kwargs) or str(error)) from None
        return function(*args, **kwargs)

    return call


def _help(called: str, signature: inspect.Signature, args: Sequence, given: Mapping[str, object]) -> str | None:
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "self"]
    positional = [name for name, parameter in signature.parameters.items() if parameter.kind != parameter.KEYWORD_ONLY]
    needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    names = [parameter.name for parameter in parameters if parameter.name not in needed]
    if surplus := args[len(positional) :]:
        meant = {name: f"{name}={surplus[0]!r}" for name in ("rank_scale", "ratio") if name in names}
        words = {"rank_scale": "for a rank as a fraction of a dimension", "ratio": "for a fraction of the parameters"}
        hint = " or ".join(f"{text} {words[name]}" for name, text in meant.items())
        hint = f"write {hint}" if hint else f"it takes {', '.join(names)}"
        return f"{called}() takes its options by name; {shown(surplus[0])} has none: {hint}"
    for name in given:
        if name not in names and name not in needed:
            close = difflib.get_close_matches(name, names, n=1)
            hint = _MEANT.get(name) or (f"did you mean {close[0]}?" if close else f"it takes {', '.join(names)}")
            return f"{called}() has no argument {name!r}: {hint}"
    missing = [name for name in needed if name not in given and name not in positional[: len(args)]]
    return f"missing a required argument: {missing[0]!r}; write {called}({', '.join(needed)}, ...)" if missing else None


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        hint = f"the class {model.__name__}; call it first"
    elif isinstance(model, Mapping):
        hint = "a state dict, which holds weights only; load it into a model and give that"
    elif isinstance(model, (list, tuple)):
        hint = f"a {type(model).__name__}; call it for each model in turn"
    elif isinstance(model, Iterator):
        hint = f"a {type(model).__name__}, as of model.parameters(); give the model"
    elif isinstance(model, (str, os.PathLike)):
        hint = f"{str(model)!r}; build the model first, and give that"
    else:
        hint = f"a {type(model).__name__}"
    raise TypeError(f"model must be a torch.nn.Module, not {hint}")


def check_number(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {value!r} of type {type(value).__name__}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value}")


def check_coefficient(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is a finite number, at least 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number such as 1e-4, not {shown(value)}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number, at least 0, not {value}")


def checked_rank(rank: int) -> int:
    """Return `rank`.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1.
    """
    if isinstance(rank, bool) or not hasattr(rank, "__index__"):
        raise TypeError(f"rank must be an integer, not {rank!r}; rank_scale is a fraction of a dimension")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    return rank


def check_matrices(called: str, matrices: object) -> None:
    """Raise TypeError unless `matrices` are floating-point tensors of two or more dimensions."""
    usage = f"give {called} floating-point tensors of two or more dimensions, such as those of layer.factors()"
    if not isinstance(matrices, Sequence):
        raise TypeError(f"{usage}, not a {type(matrices).__name__}")
    for matrix in matrices:
        if not isinstance(matrix, torch.Tensor):
            raise TypeError(f"{usage}, not a {type(matrix).__name__}")
        if matrix.dim() < 2 or not matrix.is_floating_point():
            raise TypeError(f"{usage}, not one of shape {tuple(matrix.shape)} and {matrix.dtype}")


def check_path(folder: object) -> None:
    """Raise TypeError unless `folder` is a path."""
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be a path such as 'saved', not {shown(folder)}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}{hint}")


def shown(value: object) -> str:
    """Return how a message names what was given: numbers, strings and None as they are, all else by its class."""
    return repr(value) if value is None or isinstance(value, (numbers.Real, str)) else f"a {type(value).__name__}"


def listed(names: Iterable[str]) -> str:
    """Return names of modules as a message shows them: the first three, and how many more there are."""
    names = [name or "(root)" for name in names]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def class_name(kind: type) -> str:
    """Return the name that users know a class by: `nn.Linear`, or their own."""
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.modules") else kind.__name__
