"""What a layer hands over to the one that takes its place in a model: hooks and attributes that others gave it."""

import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .forms import dense_class
from .layers.factors import Factors
from .layers.weight import Place

_MODULE = vars(nn.Module())  # what every module has
_HOOKS = [name for name, value in _MODULE.items() if "hook" in name and isinstance(value, dict)]

# Notes that `factorize` leaves: why a layer is dense, and which subclass of its dense class a factorized one was.
DENSE_REASON = "_dense_reason"
DENSE_CLASS = "_dense_class"


def hand_over(replaced: Mapping[str, tuple[Any, Any]], stacklevel: int) -> None:
    """Move hooks and attributes from each layer to the new one in its place, and warn of those that cannot be moved.

    Handles that registering the hooks returned go on to work.

    Args:
        replaced: the old and the new layer by name, or the place of a composed weight, whose module stays.
        stacklevel: of the warning.
    """
    lost = [f"{name or '(root)'}: {what}" for name, (old, new) in replaced.items() for what in _move(old, new)]
    if lost:
        warnings.warn(f"not carried over to the new layers: {'; '.join(lost)}", stacklevel=stacklevel + 1)


def _move(old: Any, new: Any) -> Iterator[str]:
    """Move what can be moved; yield, in words, what cannot."""
    if isinstance(old, Place):
        if _is_hooked(old.weight):
            yield f"gradient hooks of its {old.parameter}"
        return
    for name in _HOOKS:
        hooks = getattr(old, name)
        if not hooks:
            continue
        for hook in hooks.values():
            if getattr(hook, "with_module", False):  # it calls the module it was registered on
                hook.module = weakref.ref(new)
        hooks.update(getattr(new, name))
        setattr(new, name, hooks)  # the same dictionary, in which handles look for what to remove
    if old._is_full_backward_hook is not None:
        new._is_full_backward_hook = old._is_full_backward_hook
    for name, value in _given(old).items():
        if hasattr(new, name):
            yield f"attribute {name} (the new layer has its own)"
        elif getattr(value, "__self__", None) is old:
            yield f"attribute {name} (a method of the old layer)"
        else:
            setattr(new, name, value)
    for name, parameter in old.named_parameters(recurse=False):
        if _is_hooked(parameter):
            yield f"gradient hooks of its {name}"


def _is_hooked(parameter: Any) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _given(layer: nn.Module) -> dict[str, Any]:
    """Return the attributes of a layer that neither its class of the library or PyTorch nor `factorize` gave it."""
    kind = dense_class(layer)
    if kind is None:
        kind = type(layer)
        # Not that of nn.Module, which torch.compile puts another in the place of.
        constructors: list[Any] = [vars(parent).get("__init__") for parent in kind.__mro__ if parent is not nn.Module]
        constructors.append(Factors.make_factors)
        own = {name for c in constructors if hasattr(c, "__code__") for name in c.__code__.co_names}  # names it assigns
    else:
        with torch.device("meta"):
            plain = kind(1, 1, 1) if issubclass(kind, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else kind(1, 1)
        own = {*vars(plain)}
    own |= {DENSE_REASON, DENSE_CLASS, *_MODULE}
    return {name: value for name, value in vars(layer).items() if name not in own and not hasattr(kind, name)}
