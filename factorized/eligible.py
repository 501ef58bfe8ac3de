"""Which weights of a model can be factorized, and why the others stay dense."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .forms import FORMS, Forms, dense_class, form_of
from .layers.channel import ChannelConv2d
from .layers.product import ProductLayer
from .layers.weight import Place
from .others import AN_EMBEDDING, Owners, is_wide, obstacle, owners_of, place_of
from .parametrization import composed_in, parametrized_in
from .patterns import as_list, factorized_modules, named_modules, select, wrapped_by
from .protocol import is_factorized
from .usage import check_model, class_name, listed

# What a subclass may define and still compute what its base class computes.
_HARMLESS = frozenset(
    "__module__ __qualname__ __doc__ __init__ __annotations__ __annotate__ __annotate_func__ __annotations_cache__ "
    "__constants__ __dict__ __weakref__ __firstlineno__ __static_attributes__ __orig_bases__ __parameters__ __repr__ "
    "reset_parameters extra_repr".split()
)


class Weight(NamedTuple):
    """A parameter of a model that is a matrix, or can be seen as one."""

    module: nn.Module
    tensor: Tensor | None
    """The parameter, or None if the module computes it."""
    obstacle: str | None
    """The reason why the weight stays dense, or None."""
    parameter: str = "weight"
    """The name that the module has for it."""
    place: Place | None = None
    """The place of the composed weight that can stand for it, where no layer can."""

    @property
    def source(self) -> Any:
        """What its factorized form is made from: the layer, or the place of a composed weight."""
        return self.module if self.place is None else self.place


def weights(model: nn.Module, embeddings: bool = False, forms: Forms = FORMS, others: bool = True) -> dict[str, Weight]:
    """Return the weights of `model` that are not factorized, in module order.

    The weight of a layer is called as the layer is; any other parameter of two or more dimensions by its own name.

    Args:
        embeddings: look on embeddings as layers to factorize, too.
        forms: the factorized class for each dense one.
        others: look on what has no factorized layer as composed weights.

    Raises:
        ValueError: if a layer has no weight yet (`nn.LazyLinear` before the first batch).
    """
    _refuse_lazy(model)
    owners = owners_of(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    spatial = forms[nn.Conv2d] is not ChannelConv2d
    names: dict[int, str] = {}
    found: dict[str, Weight] = {}

    def composed(name: str, module: nn.Module, parameter: str, why: str) -> Weight:
        """Return a weight that no layer can stand for, and `why`, as one that a composed weight can, if so."""
        tensor = module._parameters.get(parameter)
        if tensor is None or not others or not is_wide(tensor):
            return Weight(module, tensor, why, parameter)
        if (first := names.setdefault(id(tensor), name)) != name:
            return Weight(module, tensor, f"its weight is shared with {first}", parameter)
        place = place_of(module, parameter, owners, spatial)
        why_not = obstacle(place, embeddings, total)
        return Weight(module, tensor, why_not, parameter, None if why_not else place)

    for name, module, parent in _dense_modules(model):
        done = dict(composed_in(module))
        kind = dense_class(module)
        if kind is not None and "weight" not in done:
            form = form_of(module, forms)
            why = _obstacle(module, kind, form, parent, owners)
            if why is None and kind is nn.Embedding and not embeddings:
                why = AN_EMBEDDING
            found[name] = Weight(module, module._parameters.get("weight"), why)
            if why not in (None, AN_EMBEDDING) and issubclass(form, ProductLayer):
                found[name] = composed(name, module, "weight", why)
        if kind is not None and not others:
            continue
        for parameter_name, parameter in module._parameters.items():
            own = name if parameter_name == "weight" else f"{name}.{parameter_name}".lstrip(".")
            if parameter is not None and is_wide(parameter) and own not in found and not _behind_hook(module, kind):
                found[own] = composed(own, module, parameter_name, _no_form(module, parameter_name))
        for parameter_name in parametrized_in(module):
            own = name if parameter_name == "weight" else f"{name}.{parameter_name}".lstrip(".")
            if others and own not in found and parameter_name not in done:
                found[own] = Weight(module, None, _COMPUTED, parameter_name)
    return found


def _refuse_lazy(model: nn.Module) -> None:
    for name, module in named_modules(model):
        for parameter_name, parameter in module._parameters.items():
            if isinstance(parameter, (UninitializedParameter, UninitializedBuffer)):
                raise ValueError(
                    f"{name or '(root)'} ({class_name(type(module))}) has no {parameter_name} yet: "
                    "run one batch through the model first"
                )


_COMPUTED = "its weight is computed by a hook or parametrization"


def _behind_hook(module: nn.Module, kind: type[nn.Module] | None) -> bool:
    """Tell whether a hook computes the weight of a layer from its parameters."""
    return kind is not None and "weight" not in module._parameters and "weight" not in parametrized_in(module)


def obstacles(model: nn.Module, embeddings: bool = False, others: bool = True) -> dict[str, str | None]:
    """Return why `factorize` leaves a weight dense, or None, by the names of `weights`."""
    return {name: weight.obstacle for name, weight in weights(model, embeddings, others=others).items()}


class Choice(NamedTuple):
    """The layers of a model that are to be factorized, and why the other weights are not."""

    weights: dict[str, Weight]
    layers: dict[str, Any]
    """What the factorized form of each is made from: a layer, or the `Place` of a composed weight."""
    dense: dict[str, str]
    """The reason by name, of every weight that is not one of `layers`."""
    sought: list[str]
    """The names that `include` and `exclude` leave, eligible or not."""


def choose(
    model: nn.Module,
    include: Iterable[str] | None,
    exclude: Iterable[str] | None,
    embeddings: bool,
    forms: Forms = FORMS,
    small_heads: bool = True,
    named: Iterable[str] = (),
    others: bool = True,
) -> Choice:
    """Return which layers of `model` are to be factorized.

    Args:
        include, exclude, embeddings, others: as for `factorize`.
        forms: the factorized class for each dense one.
        small_heads: factorize small heads (`is_small_head`) that neither `include` nor `named` asks for, too.
        named: patterns of layers that are asked for by name.

    Raises:
        TypeError, ValueError: for what is no model, for a wrapped one, one with a layer without a weight, and for
            patterns that match nothing.
    """
    check_model(model)
    refuse_wrapped(model)
    found = weights(model, embeddings, forms, others)
    include, exclude = as_list(include), as_list(exclude)
    sought = select(found, include, exclude)
    asked = {name for pattern in named for name in select(found, [pattern])}
    layers, dense = {}, {}
    for name, weight in found.items():
        if weight.obstacle is not None:
            dense[name] = weight.obstacle
        elif name not in sought:
            dense[name] = "excluded" if include is None or name in select(found, include) else "not included"
        elif not small_heads and include is None and name not in asked and is_small_head(weight.module):
            dense[name] = SMALL_HEAD
        else:
            layers[name] = weight.source
    return Choice(found, layers, dense, sought)


# A classifier of few classes has next to no parameters to save, and loses much at a rank below their number.
_FEW_OUTPUTS = 32
SMALL_HEAD = f"a small head: at most {_FEW_OUTPUTS} outputs, and fewer than inputs; include names it"


def is_small_head(layer: nn.Module) -> bool:
    """Tell whether a layer is linear with at most 32 outputs and fewer outputs than inputs."""
    return isinstance(layer, nn.Linear) and layer.out_features <= min(_FEW_OUTPUTS, layer.in_features - 1)


def nothing_to_do(model: nn.Module, choice: Choice) -> str:
    """Return, in words, why no layer of `model` is factorized."""
    reasons: dict[str, list[str]] = {}
    for name in choice.sought or choice.dense:
        reasons.setdefault(choice.dense[name], []).append(name or "(root)")
    done = list(factorized_modules(model))
    if done:
        reasons["factorized already; factorized.merge makes them dense again"] = done
    why = "; ".join(f"{listed(names)}: {reason}" for reason, names in reasons.items())
    why = why or "it has no linear layer, convolution, embedding or other matrix"
    return f"nothing in {class_name(type(model))} is factorized ({why})"


def refuse_wrapped(model: nn.Module) -> None:
    """Raise ValueError if a wrapper in `model` holds on to the parameters of the layers inside it."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("a scripted model cannot be changed: factorize it before torch.jit.script")
        wrapper = wrapped_by(module)
        sharded = any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)
        if sharded or (wrapper is not None and wrapper != "_checkpoint_wrapped_module"):
            raise ValueError(
                f"{type(module).__name__} holds on to the parameters it was made with: factorize a model before "
                "torch.compile, (Distributed)DataParallel or FSDP wraps it, not after"
            )


def _dense_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """Yield the modules that are no part of a factorized layer, by name, each with the one around it."""
    modules = dict(named_modules(model))
    inside: set[nn.Module] = set()
    parents: dict[nn.Module, nn.Module] = {}
    for module in modules.values():
        if is_factorized(module):
            inside.update(module.modules() if hasattr(module, "to_dense") else [module])
        parametrizations = module._modules.get("parametrizations")
        if parametrizations is not None:  # its parameters are those that the module's weight is computed from
            inside.update(parametrizations.modules())
        parents.update((child, module) for child in module.children())
    for name, module in modules.items():
        if module not in inside:
            yield name, module, parents.get(module)


def _obstacle(
    layer: nn.Module, kind: type[nn.Module], form: Any, parent: nn.Module | None, owners: Owners
) -> str | None:
    own = _own_way(layer, kind)
    weight = layer._parameters.get("weight")
    extra = [*(layer._parameters.keys() - {"weight", "bias"}), *layer._buffers, *layer._modules]
    if isinstance(parent, nn.MultiheadAttention):
        return "output projection of nn.MultiheadAttention"
    if weight is None:
        return _COMPUTED
    if own is not None:
        return own
    if extra:
        return f"it has more than a weight and a bias: {', '.join(sorted(extra))}"
    if len(owners[id(weight)]) > 1:
        return "its weight is shared with another module"
    return form.obstacle(layer)


def _own_way(layer: nn.Module, kind: type[nn.Module]) -> str | None:
    """Return what a layer computes otherwise than its class of PyTorch does, or None."""
    if "forward" in vars(layer):
        return "its forward was replaced"
    for subclass in type(layer).__mro__:
        if issubclass(kind, subclass):
            continue
        added = sorted(vars(subclass).keys() - _HARMLESS)
        if "forward" in added:
            return f"{subclass.__name__} has a forward of its own and may use its weight in its own way"
        if added:
            return f"{subclass.__name__} adds {added[0]} to {class_name(kind)} and may use its weight in its own way"
    return None


def _no_form(module: nn.Module, parameter: str) -> str:
    """Return, in words, what a parameter is that no factorized form stands for."""
    if isinstance(module, nn.MultiheadAttention):
        return "input projection of nn.MultiheadAttention"
    if type(module).__module__.startswith("torch.nn.modules") or parameter == "weight":
        return f"{class_name(type(module))} has no factorized form"
    return f"a parameter of {type(module).__name__} itself"
