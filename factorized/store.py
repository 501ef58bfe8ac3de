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
from .layers.base import CHANNELS_LAST, FactorizedLayer, is_channels_last, weight_obstacle
from .layers.channel import ChannelConv2d, FactorizedConv1d, FactorizedConv3d
from .layers.conv import FactorizedConv2d
from .layers.embedding import FactorizedEmbedding
from .layers.linear import FactorizedLinear, FactorizedTransposedLinear
from .layers.product import ProductLayer
from .layers.tensor import CPConv2d, TensorTrainConv2d, TuckerConv2d
from .layers.tucker2 import SeparableConv2d, Tucker2Conv2d
from .layers.weight import ComposedWeight, Place
from .model import merge as merged
from .model import replace
from .others import Owners, owners_of
from .parametrization import composed_weights
from .patterns import factorized_modules, named_modules, unwrap
from .store_files import read, write
from .usage import check_model, check_path, checked_rank, explained, shown

_CLASSES: tuple[type[FactorizedLayer], ...] = (
    FactorizedLinear, FactorizedTransposedLinear, FactorizedConv1d, FactorizedConv2d, ChannelConv2d, FactorizedConv3d,
    FactorizedEmbedding, TensorTrainConv2d, TuckerConv2d, CPConv2d, Tucker2Conv2d,
    SeparableConv2d,
)  # fmt: skip
_KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in (*_CLASSES, ComposedWeight)}

# What says how a layer computes, of the layers that have it.
_SETTINGS = (
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
    "groups", "num_embeddings", "embedding_dim", "padding_idx", "rank", "rank_scale", "path", "channels_last",
    "shape", "products", "rows", "spatial",
)  # fmt: skip

Structure = dict[str, dict[str, Any]]


def structure(model: nn.Module) -> Structure:
    """Return, for each factorized layer by name, its class, hyper-parameters, rank and path, as plain JSON values.

    Of a composed weight also the parameters that it stands for. It holds no weights. Layers of one of the library's
    classes are in it; factorized modules of other classes, such as `FactorizedAttention`, are built by the model's own
    code.
    """
    check_model(model)
    layers = {name: layer for name, layer in factorized_modules(model).items() if type(layer) in _KINDS.values()}
    names = {module: name for name, module in named_modules(model)}
    found = {name: _described(layer) for name, layer in layers.items()}
    owners = composed_weights(model)
    for name, layer in layers.items():
        if isinstance(layer, ComposedWeight):
            found[name]["places"] = [f"{names[module]}.{own}".lstrip(".") for module, own in owners[layer]]
    return found


def restructure(dense_model: nn.Module, structure: Structure) -> nn.Module:
    """Replace layers of `dense_model` by factorized ones as `structure` says, in place, and return the model.

    Nothing is decomposed, and models on the meta device stay there. Elsewhere the new factors are NaN: load a state
    dict. Biases, hooks and attributes carry over. If anything is wrong, nothing is replaced.

    Raises:
        ValueError: if the structure does not fit the model, or is none.
    """
    new = _planned(dense_model, structure)
    for old, layer in new.values():
        if not old.weight.is_meta:
            layer.to_empty(device=old.weight.device)
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.fill_(torch.nan)
        layer._take_over(old)
    return replace(dense_model, new, stacklevel=2)


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
    new = _planned(dense_model, description.get("structure"))
    state = _with_shared(tensors, description.get("shared"), folder)
    _check_names(dense_model, {old: layer for old, layer in new.values()}, state, folder)
    for old, layer in new.values():
        layer._take_over(old)
    model = replace(dense_model, new, stacklevel=2)
    _assign(model, state, set(description.get("channels_last") or ()), device)
    if device is not None:
        model = model.to(device)  # what is not saved, too
    return merged(model) if merge else model


def _described(layer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"class": type(layer).__name__}
    for name in _SETTINGS:
        if hasattr(layer, name):
            value = getattr(layer, name)
            found[name] = list(value) if isinstance(value, tuple) else value
    bias = getattr(layer, "bias", None) is not None
    return found | {"square": getattr(layer, "M", None) is not None, "bias": bias}


def _planned(model: nn.Module, structure: object) -> dict[str, tuple[Any, Any]]:
    """Return the layers to replace by name, or the places of composed weights, each with a new one on the meta device.

    What the model's code builds factorized stays.
    """
    check_model(model)
    refuse_wrapped(model)
    if not isinstance(structure, Mapping) or not all(isinstance(entry, Mapping) for entry in structure.values()):
        given = "something else" if isinstance(structure, Mapping) else shown(structure)
        raise ValueError(
            "a structure is a mapping of layer names to what factorized.structure(model) says of them, not "
            f"{given}; factorized.load reads the one of a folder"
        )
    modules = dict(named_modules(model))
    done, shared = factorized_modules(model), owners_of(model)
    sources = {
        name: done.get(name) or (_place(modules, shared, entry) if "places" in entry else modules.get(name))
        for name, entry in structure.items()
    }
    missing = [name for name, source in sources.items() if source is None]
    if missing:
        raise ValueError(f"the model has no {_listed(missing)}, which the structure has: it is another model")
    planned: dict[str, tuple[Any, Any]] = {}
    for name, entry in structure.items():
        layer = old = sources[name]
        called = f"{name or '(root)'} ({type(getattr(old, 'module', old)).__name__})"
        if name not in done:
            layer = _new(old, entry, called)
            planned[name] = old, layer
        found, entry = _described(layer), {key: value for key, value in entry.items() if key != "places"}
        wrong = [key for key in {**found, **entry} if found.get(key, "nothing") != entry.get(key, "nothing")]
        if wrong:
            key = wrong[0]
            raise ValueError(
                f"{called} does not fit the structure: {key} is {found.get(key)!r} here and {entry.get(key)!r} there"
            )
    return planned


def _place(modules: Mapping[str, nn.Module], shared: Owners, entry: Mapping[str, Any]) -> Place | None:
    """Return the place of a composed weight in a model, or None if that has not just these parameters, as one."""
    owners = []
    places = entry["places"]
    for name in places if isinstance(places, list) and all(isinstance(name, str) for name in places) else ():
        path, _, own = name.rpartition(".")
        if path not in modules or modules[path]._parameters.get(own) is None:
            return None
        owners.append((modules[path], own))
    if not owners or {*owners} != {*shared[id(owners[0][0]._parameters[owners[0][1]])]}:
        return None
    return Place(tuple(owners), entry.get("products", 0), entry.get("rows", 0), entry.get("spatial") is True)


def _new(old: Any, entry: Mapping[str, Any], called: str) -> Any:
    """Return what `entry` says, on the meta device, with the hyper-parameters of `old`."""
    kind = _KINDS.get(str(entry.get("class")))
    if kind is None:
        raise ValueError(f"{called}: {entry.get('class')!r} is not a class of layers of this version of the library")
    if isinstance(old, Place) != (kind is ComposedWeight):
        raise ValueError(f"{called}: the structure is damaged: only a ComposedWeight has places")
    if obstacle := weight_obstacle(old) if isinstance(old, Place) else kind.obstacle(old):
        raise ValueError(f"{called} cannot become a {kind.__name__}, as the structure says: {obstacle}")
    options = {"device": "meta", "dtype": old.weight.dtype}
    try:
        if kind is ComposedWeight:
            layer = kind._like(old, checked_rank(entry["rank"]), square=entry["square"] is True, **options)
        elif issubclass(kind, ProductLayer):
            size = {"rank": entry["rank"], "square": entry["square"] is True, "path": entry["path"]}
            layer = kind._like(old, **size, **options)
        elif issubclass(kind, Tucker2Conv2d):
            layer = kind._like(old, tuple(entry["rank"]), path=entry["path"], **options)
        else:
            layer = kind._like(old, entry["rank_scale"], **options)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{called}: the structure is damaged: {type(error).__name__}: {error}") from None
    layer.channels_last = entry.get("channels_last") is True
    return layer


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
    lacks = f"it lacks {_listed(sorted(missing))}" if missing else ""
    has = f"it has {_listed(sorted(surplus))}, which the model has not" if surplus else ""
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
            f"{_listed(unsaved)} is no part of a state dict and has no values on the meta device: build the model "
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


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name or "(root)" for name in names[:3]) + more
