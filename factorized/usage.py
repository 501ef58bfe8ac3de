"""Messages for calls that cannot be meant: what was given, and what would be right."""

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

# What is often written instead of an argument, and what says it.
_MEANT = {
    "rank": "ranks={'**': 8} gives every layer a rank, rank_scale=0.1 a fraction of its dimension",
    "scale": "rank_scale=0.1 is a rank as a fraction of a dimension",
    "layers": "include=['layer*.*.conv1'] chooses layers by name",
    "skip": "exclude=['fc'] leaves layers dense",
}


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` with errors of its argument list that say which arguments there are."""
    signature = inspect.signature(function)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    positional = len(signature.parameters) - len(names)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(_help(function.__name__, args[positional:], kwargs, names) or str(error)) from None
        return function(*args, **kwargs)

    return call


def _help(called: str, surplus: tuple, given: Mapping[str, object], names: list[str]) -> str | None:
    if surplus:
        meant = {name: f"{name}={surplus[0]!r}" for name in ("rank_scale", "ratio") if name in names}
        words = {"rank_scale": "for a rank as a fraction of a dimension", "ratio": "for a fraction of the parameters"}
        hint = " or ".join(f"{text} {words[name]}" for name, text in meant.items())
        return f"{called}() takes its options by name; {surplus[0]!r} has none" + (f": write {hint}" if hint else "")
    for name in given:
        if name not in names and name != "model":
            close = difflib.get_close_matches(name, names, n=1)
            hint = _MEANT.get(name) or (f"did you mean {close[0]}?" if close else f"it takes {', '.join(names)}")
            return f"{called}() has no argument {name!r}: {hint}"
    return None


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
    else:
        hint = f"a {type(model).__name__}"
    raise TypeError(f"model must be a torch.nn.Module, not {hint}")


def check_number(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {value!r} of type {type(value).__name__}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}{hint}")


def class_name(kind: type) -> str:
    """Return the name that users know a class by: `nn.Linear`, or their own."""
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.modules") else kind.__name__
