"""Factorized models in folders, and back without any decomposition.

    factorized.save(model, "folder")
    model = factorized.load(dense_model, "folder")      # dense_model: freshly built, by the code that built the first

A folder holds `factorized.json`, which says which layers are factorized and how (`structure`), and the tensors, in
`model.safetensors` if the package safetensors is installed and else in `model.pt`, which is read with
`weights_only=True`. Nothing in it is code.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .eligible import refuse_wrapped
from .layers.base import CHANNELS_LAST, is_channels_last
from .layers.weight import Place
from .model import merge as merged
from .model import replace
from .patterns import factorized_modules, unwrap
from .restructuring import planned_layers, structure
from .store_files import read, write
from .usage import check_model, check_path, explained, listed, shown


@explained
def save(model: nn.Module, folder: str | os.PathLike) -> None:
    """Write a factorized model to a folder, which `load` reads; whole or not at all.

    The folder is made if need be. One with an earlier save gets the new one in its place and keeps its other files.
    Tensors that modules share are written once.

    Raises:
        TypeError: for what is no model or no path.
        ValueError: if the model has no factorized layers, or holds something that is no plain tensor.
        FileExistsError: if the folder holds something else, or is a file.
    """
    check_model(model)
    check_path(folder)
    model = unwrap(model)
    if not factorized_modules(model):
        raise ValueError(
            "the model has no factorized layers: factorize it first, or save it by torch.save(model.state_dict(), path)"
        )
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    known: dict[tuple, str] = {}
    channels_last = []
    for name, value in model.state_dict().items():
        if type(value) not in (Tensor, nn.Parameter) or value.is_meta or value.layout != torch.strided:
            what = "on the meta device" if isinstance(value, Tensor) and value.is_meta else f"a {type(value).__name__}"
            raise ValueError(f"{name} cannot be saved: it is {what}, and not a plain tensor with values")
        if _format_of(value) is not None:
            channels_last.append(name)
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and place in known:
            shared[name] = known[place]
        else:
            known[place] = name
            tensors[name] = value.detach()
    description = {"structure": structure(model), "shared": shared, "channels_last": channels_last}
    write(Path(folder), description, tensors)


@explained
def load(
    dense_model: nn.Module,
    folder: str | os.PathLike,
    merge: bool = False,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Give a freshly built dense model the structure and the weights of a saved one, in place, and return it.

    The outputs are those of the saved model, to the bit. Nothing is decomposed. Tensors have the precision they were
    saved in, whatever that of the model, and modules that share one go on to share it.

    Args:
        dense_model: of the code and arguments that built the saved one before it was factorized. On the meta device
            (`with torch.device("meta")`) nothing is allocated twice.
        merge: return plain layers, as `factorized.merge` does.
        device: where the model goes; None leaves it where it is, and what is on the meta device goes to the CPU.

    Raises:
        TypeError: for what is no model or no path, and for a `merge` that is neither True nor False.
        FileNotFoundError: if there is no such folder.
        RuntimeError: if there is no such device.
        ValueError: if the folder does not hold a save, or one that is damaged or of a newer version, or if the save
            does not fit the model; then the model is as before.
    """
    check_model(dense_model)
    check_path(folder)
    if not isinstance(merge, bool):
        raise TypeError(f"merge must be True or False, not {shown(merge)}; device={merge!r} says where the model goes")
    if device is not None:
        torch.empty(0, device=device)  # fails if there is none, before anything is changed
    refuse_wrapped(dense_model)
    description, tensors = read(Path(folder))
    new = planned_layers(dense_model, description.get("structure"))
    state = _with_shared(tensors, description.get("shared"), folder)
    _check_names(dense_model, {old: layer for old, layer in new.values()}, state, folder)
    for old, layer in new.values():
        layer._take_over(old)
    model = replace(dense_model, new, stacklevel=3)
    _assign(model, state, set(description.get("channels_last") or ()), device)
    if device is not None:
        model = model.to(device)  # what is not saved, too
    return merged(model) if merge else model


def _with_shared(tensors: dict[str, Tensor], shared: object, folder: str | os.PathLike) -> dict[str, Tensor]:
    if not isinstance(shared, Mapping) or not all(original in tensors for original in shared.values()):
        raise ValueError(f"{folder} is damaged: it names shared tensors that it does not hold")
    return tensors | {name: tensors[original] for name, original in shared.items()}


def _check_names(
    model: nn.Module, new: Mapping[Any, nn.Module], state: Mapping[str, Tensor], folder: str | os.PathLike
) -> None:
    """Raise ValueError unless the state fits what the model will be."""
    expected = dict(_expected(model, new))
    missing, surplus = expected.keys() - state.keys(), state.keys() - expected.keys()
    lacks = f"it lacks {listed(sorted(missing))}" if missing else ""
    has = f"it has {listed(sorted(surplus))}, which the model has not" if surplus else ""
    if lacks or has:
        raise ValueError(f"{folder} is of another model: {'; '.join(filter(None, [lacks, has]))}")
    for name, value in expected.items():
        if value.shape != state[name].shape:
            there, here = tuple(state[name].shape), tuple(value.shape)
            raise ValueError(f"{folder} is of another model: {name} has the shape {there} there and {here} here")
    ties: dict[int, str] = {}
    for name, value in expected.items():
        first = ties.setdefault(id(value), name)
        if first != name and state[first] is not state[name] and not torch.equal(state[first], state[name]):
            raise ValueError(f"{folder} is of another model: {first} and {name} are one tensor here and differ there")
    unsaved = [n for n, buffer in model.named_buffers() if buffer.is_meta and n not in state]
    if unsaved:
        raise ValueError(
            f"{listed(unsaved)} is no part of a state dict and has no values on the meta device: build the model "
            "on a real one"
        )


def _expected(model: nn.Module, new: Mapping[Any, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries of the state dict that the model will have, with tensors of their shape."""
    composed = {
        (module, own): weight for old, weight in new.items() if isinstance(old, Place) for module, own in old.owners
    }
    there = {
        f"{name}.{own}".lstrip("."): (f"{name}.parametrizations.{own}.0.".lstrip("."), composed[module, own])
        for name, module in model.named_modules(remove_duplicate=False)
        for own in module._parameters
        if (module, own) in composed
    }
    places = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if module in new]
    prefixes = tuple(f"{name}." if name else "" for name, module in places)
    for name, value in model.state_dict(keep_vars=True).items():
        if name not in there and not name.startswith(prefixes):
            yield name, value
    for prefix, weight in there.values():
        for name, value in weight.state_dict(keep_vars=True).items():
            yield prefix + name, value
    for prefix, (_, module) in zip(prefixes, places):
        for name, value in new[module].state_dict(keep_vars=True).items():
            yield prefix + name, value


def _assign(
    model: nn.Module, state: dict[str, Tensor], channels_last: set[str], device: torch.device | str | None
) -> None:
    """Let the model's tensors be those of the state; ones that were the same before are the same after."""
    present = model.state_dict(keep_vars=True)
    ties: dict[int, list[str]] = {}
    uses = Counter(id(value) for value in state.values())
    placed: dict[str, Tensor] = {}
    for name, value in state.items():
        now = present[name]
        ties.setdefault(id(now), []).append(name)
        where = "cpu" if now.is_meta else now.device
        moved = value.to(where if device is None else device)
        if name in channels_last:
            moved = moved.contiguous(memory_format=CHANNELS_LAST[moved.dim()])
        # Where a file has them tensors are not aligned, and kernels take other ways for such, with other roundings.
        placed[name] = moved.clone() if uses[id(value)] > 1 or moved.data_ptr() % _ALIGNMENT else moved
    model.load_state_dict(placed, assign=True)
    for names in ties.values():
        first, *others = names
        for name in others:
            _put(model, name, _get(model, first))


def _get(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, value)


_ALIGNMENT = 64  # bytes; that of PyTorch's own memory


def _format_of(value: Tensor) -> torch.memory_format | None:
    """Return the memory format of a tensor if it is not the usual one."""
    return CHANNELS_LAST[value.dim()] if is_channels_last(value) else None
