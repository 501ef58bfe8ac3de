"""Parameters that no factorized layer stands for, and how each is seen as a matrix or as a batch of matrices.

Gates, query-key-value thirds, experts and groups are a matrix each. What a parameter means is known of PyTorch's own
modules; of others by its shape alone.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .layers.base import weight_obstacle
from .layers.conv import A_DEPTHWISE_ONE, no_smaller
from .layers.embedding import FactorizedEmbedding
from .layers.weight import Place

Owners = Mapping[int, Sequence[tuple[nn.Module, str]]]

AN_EMBEDDING = "an embedding; embeddings=True factorizes it"

_KERNEL = 7  # trailing dimensions up to this are those of a kernel
_NEGLIGIBLE = 1 / 4000  # of a model's parameters: position biases of windows, decay rates of a state space

_Embedding = (nn.Embedding, nn.EmbeddingBag)
_Norm = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)


def owners_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return, by the `id` of each parameter, the modules that it is registered in, with their names for it."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((module, name))
    return found


def is_wide(parameter: torch.Tensor) -> bool:
    """Tell whether a parameter has two or more dimensions of more than one entry."""
    return sum(size > 1 for size in parameter.shape) > 1


def place_of(module: nn.Module, name: str, owners: Owners, spatial: bool) -> Place:
    """Return how a parameter is seen as matrices.

    Args:
        owners: `owners_of` the model.
        spatial: whether 2-D kernels are split as in `FactorizedConv2d`, else between their channels.
    """
    weight = module._parameters[name]
    assert weight is not None
    shape = tuple(weight.shape)
    where = tuple(owners[id(weight)])
    if isinstance(module, _ConvNd) and name == "weight":
        products = module.groups
        two = spatial and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        return Place(where, products, shape[0] // products * (shape[2] if two else 1), two)
    products = _gates(module, name, shape)
    if products > 1 and shape[0] % products == 0:
        return Place(where, products, shape[0] // products)
    inner = len(shape)
    while inner > 2 and shape[inner - 1] <= _KERNEL:
        inner -= 1
    rows = max(inner - 2, 0)
    return Place(where, max(int(torch.Size(shape[:rows]).numel()), 1), shape[rows])


def obstacle(place: Place, embeddings: bool, parameters: int) -> str | None:
    """Return why no composed weight can, or should by default, stand for a parameter; None if one can.

    Args:
        embeddings: whether tables are factorized.
        parameters: of the whole model.
    """
    if why := weight_obstacle(place):
        return why
    for module, name in place.owners:
        if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            return f"a parameter of a {type(module).__name__}, whose code is fixed"
        if isinstance(module, _Norm):
            return "the scale of a normalization, entry by entry"
        if isinstance(module, _ConvNd) and module.groups > 1 and module.weight.shape[1] == 1:
            return A_DEPTHWISE_ONE
        if isinstance(module, _Embedding) and name == "weight":
            if why := FactorizedEmbedding.unusual(module):
                return why
            if not embeddings:
                return AN_EMBEDDING
    if min(place.matrix_shape) == 1:
        return no_smaller(place.matrix_shape)
    if not type(place.module).__module__.startswith("torch.nn.") and place.parameter != "weight":
        if place.weight.shape[0] == 1 and not embeddings:
            return "a table, the same for all of a batch; embeddings=True factorizes it"
        if place.weight.numel() < _NEGLIGIBLE * parameters:
            return f"less than {_NEGLIGIBLE:.3%} of the parameters".replace("%", " %")
    return None


def _gates(module: nn.Module, name: str, shape: Sequence[int]) -> int:
    """Return how many matrices a parameter of a module of PyTorch's holds one after the other; 1 if none is known."""
    if isinstance(module, nn.MultiheadAttention):
        return 3 if name == "in_proj_weight" else 1
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and name.startswith(("weight_ih", "weight_hh")):
        return shape[0] // module.hidden_size
    return 1
