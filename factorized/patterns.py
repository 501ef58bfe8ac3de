"""Finding modules by name pattern, and grouping factorized ones by shape.

A pattern is a shell-style glob matched on whole components of the dotted module name, from the root: `conv1` is the
stem of a ResNet and not `layer1.0.conv1`; `*` stands for one component, `**` for any number of them. A pattern that
matches a module covers everything inside it, so `layer1` covers `layer1.0.conv1`.
"""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from .protocol import is_contracted, is_factorized

# What the module inside is called by wrappers of single layers: compiled, sharded, with its activations checkpointed.
_WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def matches(pattern: str, name: str) -> bool:
    """Tell whether `pattern` matches the module called `name` or a module around it."""
    return _match_prefix(pattern.split("."), name.split("."))


def _match_prefix(pattern: list[str], name: list[str]) -> bool:
    if not pattern:
        return True
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        return any(_match_prefix(rest, name[skip:]) for skip in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], head) and _match_prefix(rest, name[1:])


def select(
    names: Iterable[str], include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
) -> list[str]:
    """Return the names that match a pattern of `include` (all, if None) and none of `exclude`, in order.

    Raises:
        ValueError: for an empty pattern, or one that matches none of `names`.
    """
    names = list(names)
    chosen = names if include is None else _matched(names, include)
    dropped = set(_matched(names, exclude or ()))
    return [name for name in chosen if name not in dropped]


def _matched(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    patterns = list(patterns) if not isinstance(patterns, str) else [patterns]
    for pattern in patterns:
        if not all(pattern.split(".")):
            raise ValueError(f"empty component in module pattern {pattern!r}")
        if not any(matches(pattern, name) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            known = ", ".join(close) or "(none)"
            raise ValueError(f"module pattern {pattern!r} matches no layer; layers are called {known}")
    return [name for name in names if any(matches(pattern, name) for pattern in patterns)]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile` and (Distributed)DataParallel wrappers, whose prefixes are not names."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def factorized_modules(
    model: nn.Module, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
) -> dict[str, nn.Module]:
    """Return the factorized modules of `model` by name, in module order: those with a method `factors()`.

    Names are those of the bare model, whatever is wrapped around it or its layers. A module whose weight is not the
    product of its factors in order also has a method `contract()`, which returns the weight as a matrix.

    Raises:
        ValueError: for a pattern that matches none of them.
    """
    found = {}
    for name, module in unwrap(model).named_modules():
        wrapper = not _WRAPPED.isdisjoint(module._modules)  # which hands on the attributes of what it wraps
        if not wrapper and is_factorized(module):
            found[".".join(part for part in name.split(".") if part not in _WRAPPED)] = module
    return {name: found[name] for name in select(found, include, exclude)}


def owner(factor: Tensor) -> Tensor:
    """Return the parameter that a factor is, or is a view of."""
    return factor if factor._base is None else factor._base


def _chain(module: nn.Module) -> tuple[Tensor, ...]:
    """Return matrices whose product is the weight: the factors, or just the weight of a module that contracts them."""
    return (module.contract(),) if is_contracted(module) else module.factors()


@torch.no_grad()
def group_by_shape(modules: Iterable[nn.Module]) -> list[list[int]]:
    """Return lists of positions in `modules` whose factors agree in shape, dtype and device and so can be stacked."""
    groups: dict[tuple, list[int]] = {}
    for position, module in enumerate(modules):
        key = (is_contracted(module), *((f.shape, f.dtype, f.device) for f in _chain(module)))
        groups.setdefault(key, []).append(position)
    return list(groups.values())


def stack_factors(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return the factors of modules of equal shape, each stacked along a new first dimension, at least float32.

    A module that contracts its factors has a single one here, its weight as a matrix.
    """
    return stack([_chain(module) for module in modules])


def stack(products: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the first factors of products of equal shapes stacked, then the second ones, ..., at least float32.

    A stack is laid out in memory as its parts are, and is a view of a single one.
    """
    stacked = [_stack(same) for same in zip(*products)]
    return [s if s.dtype in (torch.float32, torch.float64) else s.float() for s in stacked]


def _stack(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0][None]
    if is_transposed(parts[0]):
        return torch.stack([part.mT for part in parts]).mT
    return torch.stack(parts)


def is_transposed(matrices: Tensor) -> bool:
    """Tell whether columns instead of rows lie together in memory."""
    return matrices.stride(-2) == 1 and matrices.stride(-1) != 1
