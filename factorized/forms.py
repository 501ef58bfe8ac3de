"""Which factorized class stands for which dense one."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .layers.base import FactorizedLayer
from .layers.channel import ChannelConv2d, FactorizedConv1d, FactorizedConv3d
from .layers.conv import FactorizedConv2d
from .layers.embedding import FactorizedEmbedding
from .layers.linear import Conv1D, FactorizedLinear, FactorizedTransposedLinear, is_conv1d
from .layers.weight import ComposedWeight, Place
from .usage import check_choice, class_name

Forms = Mapping[type[nn.Module], type[FactorizedLayer]]


# The dense classes that have factorized forms, and those that they have unless another is asked for.
FORMS: Forms = {
    nn.Linear: FactorizedLinear,
    Conv1D: FactorizedTransposedLinear,
    nn.Conv1d: FactorizedConv1d,
    nn.Conv2d: FactorizedConv2d,
    nn.Conv3d: FactorizedConv3d,
    nn.Embedding: FactorizedEmbedding,
}


SPLITS = ("spatial", "channel")


def forms_for(layer: type[FactorizedLayer] | Forms | None, split: str = "spatial") -> Forms:
    """Return the factorized class for each dense class, as the arguments `layer` and `split` of `factorize` ask.

    Raises:
        TypeError: for what is no factorized class that can be made from a dense layer.
        ValueError: for an unknown split, and for one beside a class for 2-D convolutions.
    """
    check_choice("split", split, SPLITS)
    default: Forms = {**FORMS, nn.Conv2d: ChannelConv2d} if split == "channel" else FORMS
    if layer is None:
        return default
    asked = dict(layer) if isinstance(layer, Mapping) else dict.fromkeys(FORMS, layer)
    for dense, form in asked.items():
        if dense not in FORMS:
            known = ", ".join(map(class_name, FORMS))
            raise TypeError(f"layer gives a factorized class for one of {known}, not for {dense!r}")
        if not (isinstance(form, type) and issubclass(form, FactorizedLayer) and hasattr(form, "from_dense")):
            raise TypeError(f"layer must be a class such as factorized.TensorTrainConv2d, not {form!r}")
        if isinstance(layer, Mapping) and (own := getattr(form, "dense_type", nn.Conv2d)) is not dense:
            raise TypeError(f"{form.__name__} stands for a {class_name(own)}, not for a {class_name(dense)}")
    if split != "spatial" and nn.Conv2d in asked:
        raise ValueError("layer names a class for nn.Conv2d, and split chooses one: give one of the two")
    return {**default, **asked}


def dense_class(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class that a layer is of, of those of PyTorch or transformers that have a factorized form, or None."""
    kind = next((kind for kind in FORMS if isinstance(layer, kind)), None)
    return next(filter(is_conv1d, type(layer).__mro__)) if kind is Conv1D else kind


def form_of(layer: nn.Module, forms: Forms) -> Any:
    """Return the factorized class for a layer that has one, or for the place of a composed weight."""
    if isinstance(layer, Place):
        return ComposedWeight
    return next(form for kind, form in forms.items() if isinstance(layer, kind))
