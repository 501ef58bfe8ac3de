"""Finding modules by name pattern, and grouping factorized ones by shape.

A pattern is a shell-style glob matched on whole components of the dotted module name, from the root: `conv1` is the
stem of a ResNet and not `layer1.0.conv1`; `*` stands for one component, `**` for any number of them. A pattern that
matches a module covers everything inside it, so `layer1` covers `layer1.0.conv1`.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .protocol import is_contracted, is_factorized
from .usage import check_model


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
        TypeError: for a pattern that is no string.
        ValueError: for an empty pattern, or one that matches none of `names`.
    """
    names, include, exclude = list(names), as_list(include), as_list(exclude)
    chosen = names if include is None else _matched(names, include)
    dropped = set(_matched(names, exclude or ()))
    return [name for name in chosen if name not in dropped]


def as_list(patterns: Iterable[str] | None) -> list[str] | None:
    """Return patterns as a list, a single one too; None stays None.

    Raises:
        TypeError: for what is no collection of patterns.
    """
    if patterns is None:
        return None
    if isinstance(patterns, str):
        return [patterns]
    if isinstance(patterns, (Mapping, bytes, nn.Module)) or not isinstance(patterns, Iterable):
        given = f"a {type(patterns).__name__}"
        raise TypeError(f"module patterns are a list of strings such as ['layer1', '**.conv1'], not {given}")
    return list(patterns)


def _matched(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        _check(pattern, names)
    return [name for name in names if any(matches(pattern, name) for pattern in patterns)]


# Characters of regular expressions that are in no module's name and in no glob.
_OF_REGULAR_EXPRESSIONS = frozenset("\\^$|(){}+")


def _check(pattern: object, names: Sequence[str]) -> None:
    """Raise an error that says what is wrong with a pattern, unless it matches one of `names`."""
    if isinstance(pattern, type):
        raise TypeError(f"a module pattern is a name such as 'layer1.0.conv1', not the class {pattern.__name__}")
    if not isinstance(pattern, str):
        raise TypeError(f"a module pattern is a name such as 'layer1.0.conv1', not a {type(pattern).__name__}")
    if _OF_REGULAR_EXPRESSIONS & set(pattern):
        glob = _as_glob(pattern, names)
        raise ValueError(
            f"module pattern {pattern!r} looks like a regular expression; patterns are globs of whole components of a "
            "name, '*' for one and '**' for any number of them" + (f": did you mean {glob!r}?" if glob else "")
        )
    if "," in pattern:
        parts = [part.strip() for part in pattern.split(",")]
        raise ValueError(f"module pattern {pattern!r} has a comma; several patterns are a list: {parts}")
    if not all(pattern.split(".")):
        raise ValueError(f"empty component in module pattern {pattern!r}")
    if any(matches(pattern, name) for name in names):
        return
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
    hint = ""
    if any(matches(f"**.{pattern}", name) for name in names):
        hint = f"; '**.{pattern}' would match at any depth"
    elif any(matches(pattern.removesuffix(".weight"), name) for name in names):
        hint = "; the weight of a layer is called as the layer is: leave '.weight' out"
    elif isinstance(getattr(nn, pattern.rpartition(".")[2], None), type):
        hint = "; a pattern is the name of a module, not its class"
    raise ValueError(
        f"module pattern {pattern!r} matches no layer; layers are called {', '.join(close) or '(none)'}{hint}"
    )


def _as_glob(expression: str, names: Sequence[str]) -> str | None:
    """Return a pattern that may be what a regular expression meant, if one matches."""
    glob = expression.strip("^$")
    for part, meant in (("\\.", "."), ("\\d+", "*"), ("\\d", "?"), (".*", "*"), (".+", "*")):
        glob = glob.replace(part, meant)
    tried = (glob, f"{glob}*", f"**.{glob}", f"**.{glob}*")
    usable = [t for t in tried if all(t.split(".")) and not _OF_REGULAR_EXPRESSIONS & set(t)]
    return next((t for t in usable if any(matches(t, name) for name in names)), None)


# Wrappers keep the module that they are around under one of these names, which are no part of its name.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def wrapped_by(module: nn.Module) -> str | None:
    """Return the name under which a wrapper keeps the module inside, or None for what is no wrapper."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    return next((name for name in _WRAPPED if name in module._modules), None)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers: `torch.compile`, (Distributed)DataParallel, FSDP, activation checkpointing."""
    while (name := wrapped_by(model)) is not None:
        model = model.get_submodule(name)
    return model


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module inside `model` once, by the name it has without wrappers, in module order."""
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        module = unwrap(module)
        if module in seen:
            return
        seen.add(module)
        yield name, module
        for child_name, child in module._modules.items():
            if child is not None:
                yield from walk(f"{name}.{child_name}" if name else child_name, child)

    yield from walk("", model)


def factorized_modules(
    model: nn.Module, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
) -> dict[str, nn.Module]:
    """Return the factorized modules of `model` by name, in module order: those with a method `factors()`.

    Names are those of the bare model, whatever is wrapped around it or its layers; a composed weight is called as its
    parameter (`known_as`). A module whose weight is not the
    product of its factors in order also has a method `contract()`, which returns the weight as a matrix.

    Raises:
        TypeError: for what is no model.
        ValueError: for a pattern that matches none of them.
    """
    check_model(model)
    found = {known_as(name): module for name, module in named_modules(model) if is_factorized(module)}
    return {name: found[name] for name in select(found, include, exclude)}


def known_as(name: str) -> str:
    """Return how the module of this name is called if it is a parametrization: as the parameter, or, of `weight`, as
    the module with it.
    """
    parts = name.split(".")
    if len(parts) < 3 or parts[-3] != "parametrizations":
        return name
    return ".".join(parts[:-3] if parts[-2] == "weight" else [*parts[:-3], parts[-2]])


def owner(factor: Tensor) -> Tensor:
    """Return the parameter that a factor is, or is a view of."""
    return factor if factor._base is None else factor._base


def _chain(module: Any) -> tuple[Tensor, ...]:
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


def _stack(parts: tuple[Tensor, ...]) -> Tensor:
    if len(parts) == 1:
        return parts[0][None]
    if is_transposed(parts[0]):
        return torch.stack([part.mT for part in parts]).mT
    return torch.stack(parts)


def is_transposed(matrices: Tensor) -> bool:
    """Tell whether columns instead of rows lie together in memory."""
    return matrices.stride(-2) == 1 and matrices.stride(-1) != 1
