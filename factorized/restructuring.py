"""What says how a model is factorized, without its weights, and a dense model brought into that structure."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .eligible import refuse_wrapped
from .layers.base import FactorizedLayer, weight_obstacle
from .layers.channel import ChannelConv2d, FactorizedConv1d, FactorizedConv3d
from .layers.conv import FactorizedConv2d
from .layers.embedding import FactorizedEmbedding
from .layers.linear import FactorizedLinear, FactorizedTransposedLinear
from .layers.product import ProductLayer
from .layers.tensor import CPConv2d, TensorTrainConv2d, TuckerConv2d
from .layers.tucker2 import SeparableConv2d, Tucker2Conv2d
from .layers.weight import ComposedWeight, Place
from .model import replace
from .others import Owners, owners_of
from .parametrization import composed_weights
from .patterns import factorized_modules, named_modules
from .usage import check_model, checked_rank, listed, shown

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
    new = planned_layers(dense_model, structure)
    for old, layer in new.values():
        if not old.weight.is_meta:
            layer.to_empty(device=old.weight.device)
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.fill_(torch.nan)
        layer._take_over(old)
    return replace(dense_model, new, stacklevel=2)


def _described(layer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"class": type(layer).__name__}
    for name in _SETTINGS:
        if hasattr(layer, name):
            value = getattr(layer, name)
            found[name] = list(value) if isinstance(value, tuple) else value
    bias = getattr(layer, "bias", None) is not None
    return found | {"square": getattr(layer, "M", None) is not None, "bias": bias}


def planned_layers(model: nn.Module, structure: object) -> dict[str, tuple[Any, Any]]:
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
        raise ValueError(f"the model has no {listed(missing)}, which the structure has: it is another model")
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
