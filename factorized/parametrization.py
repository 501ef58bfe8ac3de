"""Composed weights in the modules that read them, by the means of `torch.nn.utils.parametrize`.

PyTorch gives a parametrized module a class of its own, with a property in place of the parameter. Those classes are
made for one module: here a copy gets another one, and modules can be pickled.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .layers.weight import ComposedWeight, Place


def install(place: Place, weight: ComposedWeight) -> None:
    """Let a composed weight stand for a parameter wherever that is."""
    module: Any
    for module, name in place.owners:
        if parametrize.is_parametrized(module):
            module.__class__ = _renewed(type(module))
        order = _order_of(module)
        _register(module, name)
        module.parametrizations[name][0] = weight
        _complete(type(module), order)
        if isinstance(module, nn.RNNBase):
            vars(module).update(_flat_weight_refs=[])
            vars(module).pop("_flat_weights", None)


def composed_weights(model: nn.Module) -> dict[ComposedWeight, list[tuple[nn.Module, str]]]:
    """Return the composed weights in a model, each with the modules that read it and their names for it."""
    found: dict[ComposedWeight, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, weight in composed_in(module):
            found.setdefault(weight, []).append((module, name))
    return found


def composed_in(module: nn.Module) -> Iterator[tuple[str, ComposedWeight]]:
    """Yield the composed weights that a module itself reads, by its names for them."""
    for name, chain in parametrized_in(module).items():
        if isinstance(chain[0], ComposedWeight):
            yield name, chain[0]


def parametrized_in(module: nn.Module) -> dict[str, Any]:
    """Return the lists of parametrizations that a module itself has, by the names of the parameters."""
    if not parametrize.is_parametrized(module):
        return {}
    return dict(module.parametrizations.items())  # type: ignore[union-attr,operator]


def uninstall(weights: Mapping[ComposedWeight, Sequence[tuple[nn.Module, str]]]) -> None:
    """Put parameters where composed weights are; modules that share one go on to do so.

    Args:
        weights: with their owners, as from `composed_weights`.

    Raises:
        ValueError: if another parametrization was registered on top of one, or one is sharded among processes; then
            nothing has changed.
    """
    if any(hasattr(weight.U, "full_tensor") for weight in weights):
        raise ValueError("the factors are sharded among processes: merge the model before fully_shard shards it")
    for module, name in (owner for owners in weights.values() for owner in owners):
        if len(module.parametrizations[name]) > 1:  # type: ignore[index,operator,union-attr,arg-type]
            raise ValueError(
                f"{name} of {parametrize.type_before_parametrizations(module).__name__} has another parametrization on "
                "top of its factors: remove that first, with torch.nn.utils.parametrize.remove_parametrizations"
            )
    for weight, owners in weights.items():
        parameter = weight.to_parameter()
        for module, name in owners:
            _put_back(module, name, parameter)


def _put_back(module: Any, name: str, parameter: nn.Parameter) -> None:
    module.__class__ = own = _renewed(type(module))
    order = _order_of(module)
    delattr(own, name)
    del module.parametrizations[name]
    module.register_parameter(name, parameter)
    if not parametrize.is_parametrized(module):
        del module.parametrizations
        module.__class__ = _base(module)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    present = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({known: present.pop(known) for known in order if known in present} | present)


class _Vacant(nn.Module):
    """Stands for a parametrization while it is registered, which must not compute anything."""

    def right_inverse(self, weight: object) -> tuple[()]:
        return ()


def _register(module: nn.Module, name: str) -> None:
    parametrize.register_parametrization(module, name, _Vacant(), unsafe=True)


def _renewed(kind: type) -> type:
    """Return a class like one that PyTorch made for a module, for that module alone."""
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, kind.__bases__, own)


def _base(module: nn.Module) -> Any:
    """Return the class that a parametrized module has without parametrizations; others may have derived from those."""
    return type(module)._plain_class  # type: ignore[attr-defined]


def _order_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's parameters in the order that they have without parametrizations."""
    return getattr(type(module), "_order_of_parameters", tuple(module._parameters))


def _complete(kind: Any, order: tuple[str, ...]) -> None:
    """Give a class that PyTorch has made for a parametrized module what it lacks."""
    base = kind.__bases__[0]
    kind._plain_class, kind._order_of_parameters = base, order
    kind.__reduce_ex__ = _reduce
    kind.__setattr__ = _set
    if "__getstate__" in vars(kind):
        del kind.__getstate__
    if not hasattr(base, "__deepcopy__"):
        kind.__deepcopy__ = _deepcopy
    if issubclass(base, (nn.RNNBase, nn.MultiheadAttention)):
        kind.forward = _composed_once
    if issubclass(base, nn.RNNBase):  # which keeps a list of its weights
        kind._flat_weights = property(_flat_weights, lambda self, value: None)
        for name in ("_init_flat_weights", "_update_flat_weights", "flatten_parameters"):
            setattr(kind, name, _nothing)


def _set(self: Any, name: str, value: Any) -> None:
    """Assign to the composed weight, where `nn.Module` would refuse a parameter in its place."""
    if isinstance(value, nn.Parameter) and parametrize.is_parametrized(self, name):
        value = value.detach()
    _base(self).__setattr__(self, name, value)


def _deepcopy(self: Any, memo: dict) -> Any:
    kind: Any = _renewed(type(self))
    replica = memo[id(self)] = kind.__new__(kind)
    vars(replica).update(copy.deepcopy(vars(self), memo))
    return replica


def _reduce(self: Any, protocol: object) -> tuple:
    base = _base(self)
    state = self.__getstate__() if hasattr(self, "__getstate__") else vars(self).copy()
    return _rebuild, (base, tuple(self.parametrizations), _order_of(self)), state


def _rebuild(base: Any, names: Sequence[str], order: tuple[str, ...]) -> nn.Module:
    """Return a module of the class that one of `base` has with parametrizations of these names, without its state."""
    module = base.__new__(base)
    nn.Module.__init__(module)
    for name in names:
        module.register_parameter(name, nn.Parameter(torch.empty(0)))
        _register(module, name)
    _complete(type(module), order)
    return module


def _composed_once(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute the output, composing each weight once however often the code of PyTorch reads it."""
    forward = _base(self).forward
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:  # both see that it is the same
        return forward(self, *args, **kwargs)
    with parametrize.cached():
        return forward(self, *args, **kwargs)


def _flat_weights(self: Any) -> list:
    return [getattr(self, name) for name in self._flat_weights_names]


def _nothing(self: Any) -> None:
    """Stands for what only modules that own their weights can do."""
