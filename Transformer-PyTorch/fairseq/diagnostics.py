"""Norms of a Transformer's matrices, as the paper plots them by epoch."""

from torch import nn

import factorized
from factorized.layers.heads import OutputValue, QueryKey

from .stacks import FeedForward
from .transformer import Transformer

# TensorBoard tags, by those of `factorized.layer_metrics`; what follows the form's name comes last.
_TAGS = {
    "metric/FrobNorm": ("FrobNorm", ""),
    "metric/NucNorm": ("NucNorm", ""),
    "metric/NucNorm-bound": ("NucNorm", "-Bound"),
    "metric/NonOrth": ("NonOrth", ""),
}


def norms_of_products(model: Transformer) -> dict[str, float]:
    """Return mean norms and non-orthogonality, by TensorBoard tag.

    `QueKey` and `OutVal` are means over all heads, `Linear` over the matrices of the feed-forward networks.
    """
    linear = [m for f in model.modules() if isinstance(f, FeedForward) for m in (f.inner, f.outer)]
    forms = {"QueKey": _of(model, QueryKey), "OutVal": _of(model, OutputValue), "Linear": linear}
    values = {}
    for form, layers in forms.items():
        metrics = factorized.layer_metrics(layers, lr=0.0)
        values |= {f"{kind}/{form}{end}": metrics[tag] for tag, (kind, end) in _TAGS.items() if tag in metrics}
    return values


def _of(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]
