"""Factorizing a whole model, choosing ranks for a target size, and merging back to dense."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers.channel import FactorizedConv1d, FactorizedConv3d
from .layers.conv import FactorizedConv2d
from .layers.embedding import FactorizedEmbedding
from .layers.linear import FactorizedLinear
from .layers.product import Fill, ProductLayer, scaled_rank, warn_of_padding
from .linalg.parallel import for_each
from .linalg.spectral import spectral_init
from .patterns import factorized_modules, select, unwrap

# Exact types: a subclass may use its weight in its own way (nn.MultiheadAttention reads its projection's weight).
_FACTORIZED_TYPE: Mapping[type[nn.Module], type[ProductLayer]] = {
    nn.Linear: FactorizedLinear,
    nn.Conv1d: FactorizedConv1d,
    nn.Conv2d: FactorizedConv2d,
    nn.Conv3d: FactorizedConv3d,
    nn.Embedding: FactorizedEmbedding,
}

_LARGE = 2**18  # elements of a matrix


class RankScale(NamedTuple):
    """A rank scale found for a target, and what it leads to."""

    rank_scale: float
    parameters: int
    """parameters of the factorized model"""
    ratio: float
    """`parameters` over those of the dense model"""


def parameter_count(model: nn.Module) -> int:
    """Return the number of scalars in all parameters of `model`, shared ones once, buffers excluded."""
    return sum(parameter.numel() for parameter in model.parameters())


def obstacles(model: nn.Module, embeddings: bool = False) -> dict[str, str | None]:
    """Return why `factorize` leaves a layer dense, or None, for every linear and convolution layer by name.

    With `embeddings`, also for every embedding.
    """
    kinds = tuple(kind for kind in _FACTORIZED_TYPE if embeddings or kind is not nn.Embedding)
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, kinds):
            continue
        kind = _FACTORIZED_TYPE.get(type(module))
        if kind is None:
            found[name] = f"{type(module).__name__} may use its weight in its own way"
        elif "weight" not in module._parameters:
            found[name] = "its weight is computed by a hook or parametrization"
        elif uses[id(module.weight)] > 1:
            found[name] = "its weight is shared with another module"
        elif getattr(module, "groups", 1) > 1:
            found[name] = "grouped convolution"
        else:
            found[name] = kind.obstacle(module)
    return found


def find_rank_scale(
    model: nn.Module,
    ratio: float,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    square: bool = False,
    strict: bool = False,
    embeddings: bool = False,
) -> RankScale:
    """Return the rank scale in (0, 1] at which `factorize` brings the model closest to `ratio` of its parameters.

    Bisection on the count alone: nothing is built or copied and no random number is drawn. Ranks are integers, so the
    achieved ratio is one of the two steps around the target.

    Args:
        ratio: target, parameters after over parameters before; all parameters count.
        include, exclude, square, embeddings: as for `factorize`.
        strict: raise instead of warn if no scale in (0, 1] reaches the target.

    Raises:
        ValueError: if `ratio` is not positive, or unreachable and `strict`.
    """
    return _search(model, list(_candidates(model, include, exclude, embeddings).values()), ratio, square, strict)


def _search(model: nn.Module, layers: list[nn.Module], ratio: float, square: bool, strict: bool) -> RankScale:
    if not 0 < ratio < float("inf"):
        raise ValueError(f"ratio must be a positive number, not {ratio}")
    sizes = Counter()  # layers of equal shape are counted together
    for layer in layers:
        kind = _FACTORIZED_TYPE[type(layer)]
        sizes[kind.scaled_dimension(layer), sum(kind.matrix_shape(layer))] += 1
    total = parameter_count(model)
    fixed = total - sum(layer.weight.numel() for layer in layers)

    def count(rank_scale: float) -> int:
        parameters = fixed
        for (dimension, perimeter), times in sizes.items():
            rank = scaled_rank(rank_scale, dimension)
            parameters += times * rank * (perimeter + (rank if square else 0))
        return parameters

    lower, upper = 0.0, 1.0
    best = None
    while True:
        middle = (lower + upper) / 2
        parameters = count(middle)
        found = RankScale(middle, parameters, parameters / total)
        if best is None or abs(found.ratio - ratio) < abs(best.ratio - ratio):
            best = found
        if upper - lower < 1e-6 or abs(found.ratio - ratio) < 1e-6:
            break
        lower, upper = (middle, upper) if found.ratio < ratio else (lower, middle)
    least, most = count(1e-9) / total, count(1.0) / total
    if not least <= ratio <= most:
        reach = f"rank scales up to 1 give {least:.6f} to {most:.6f}"
        message = f"ratio {ratio} is unreachable: {reach}; using {best.ratio:.6f}"
        if strict:
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)
    return best


def factorize(
    model: nn.Module,
    *,
    rank_scale: float | None = None,
    ratio: float | None = None,
    ranks: Mapping[str, int] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    spectral: bool = True,
    init: str | Fill = "kaiming",
    square: bool = False,
    square_init: Fill | None = None,
    path: str = "auto",
    strict: bool = False,
    embeddings: bool = False,
    verbose: bool = False,
    example_input: Tensor | None = None,
) -> nn.Module:
    """Replace the linear and convolution layers of `model` by factorized ones, in place, and return it.

    The root itself is replaced when it is such a layer, so use the returned model. Left dense, each with its reason in
    the report: subclasses of the two layers, layers whose weight is shared or computed, grouped convolutions (use
    `FactorizedConv2d.from_dense` on those), and convolutions with padding other than zeros.

    Args:
        rank_scale: rank of each layer as a fraction of one of its dimensions (`scaled_dimension` of its class). May be
            above 1, for over-parameterized training.
        ratio: or, the parameters of the result as a fraction of those of `model`; see `find_rank_scale`.
        ranks: rank by module pattern; wins over the two above, and the last pattern that matches wins. Alone, it
            leaves all other layers dense.
        include, exclude: patterns of module names (`factorized.patterns`): only layers that match one of `include`
            and none of `exclude` are factorized.
        spectral: start from the spectral initialization of each layer's weight; otherwise `init` fills the factors.
        init: without `spectral`: `kaiming`, `fan_in`, `fan_out`, or a function that fills a tensor in place, as for
            `from_dense` of the layers.
        square, square_init, path: as for `from_dense` of the layers.
        strict: raise if `ratio` cannot be reached, instead of warning.
        embeddings: factorize embeddings, too. Only for those that the model looks rows up in and does nothing else
            with: a weight that it reads elsewhere than in the `forward` of the module around it is not noticed.
        verbose: print the report (`factorized.report`), with multiply-adds for inputs like `example_input` if given.

    Raises:
        ValueError: unless exactly one of `rank_scale` and `ratio`, or `ranks`, is given; for values out of range; for
            a pattern that matches no layer; if `include` matches only layers that are left dense; for a wrapped model.
    """
    if rank_scale is not None and ratio is not None:
        raise ValueError("give rank_scale or ratio, not both")
    if rank_scale is None and ratio is None and ranks is None:
        raise ValueError("give rank_scale, ratio or ranks")
    candidates = _candidates(model, include, exclude, embeddings)
    given = {name: rank for pattern, rank in (ranks or {}).items() for name in select(candidates, [pattern])}
    if ratio is not None:
        if given:
            raise ValueError("give ratio or ranks, not both")
        rank_scale = _search(model, list(candidates.values()), ratio, square, strict).rank_scale
    chosen = candidates if rank_scale is not None else {name: candidates[name] for name in candidates if name in given}
    new = {
        name: _FACTORIZED_TYPE[type(layer)].from_dense(
            layer, 1.0 if rank_scale is None else rank_scale, rank=given.get(name), init=None if spectral else init,
            square=square, square_init=square_init, path=path,
        )
        for name, layer in chosen.items()
    }  # fmt: skip
    if spectral:
        warn_of_padding([name or "(root)" for name in new], *new.values())
        _spectral_start(chosen, new)
    model = _replace(model, {chosen[name]: layer for name, layer in new.items()})
    if verbose:
        from .table import report

        print(report(model, example_input))
    return model


def merge(model: nn.Module) -> nn.Module:
    """Replace every factorized layer by its `to_dense()`, in place, and return the model; its outputs stay the same.

    Factorized modules that stand for no layer, such as the products of attention heads, stay as they are.
    """
    layers = [module for module in factorized_modules(model).values() if hasattr(module, "to_dense")]
    return _replace(model, {layer: layer.to_dense() for layer in layers})


def _candidates(model: nn.Module, include, exclude, embeddings: bool) -> dict[str, nn.Module]:
    """Return the layers that `factorize` may replace, by name, in module order."""
    if unwrap(model) is not model:
        raise ValueError("factorize a model before torch.compile or (Distributed)DataParallel wraps it, not after")
    found, modules = obstacles(model, embeddings), dict(model.named_modules())
    selected = select(found, include, exclude)
    candidates = {name: modules[name] for name in selected if found[name] is None}
    if selected and not candidates and include is not None:
        raise ValueError(f"none of the layers to include can be factorized; {selected[0]}: {found[selected[0]]}")
    return candidates


def _spectral_start(dense: Mapping[str, nn.Module], new: Mapping[str, ProductLayer]) -> None:
    """Start `new` from the weights of `dense`, layers of equal shape and rank in one batch unless they are large."""
    groups: dict[tuple, list[str]] = {}
    for name, layer in new.items():
        # A large matrix gains nothing from a batch, for which it would have to be copied.
        alone = name if layer.U.shape[0] * layer.VT.shape[1] > _LARGE else None
        groups.setdefault((layer.U.shape, layer.VT.shape, layer.U.dtype, layer.U.device, alone), []).append(name)

    def start(names: list[str]) -> None:
        matrices = [new[name].matrix_of(dense[name]).detach() for name in names]
        batch = torch.stack(matrices) if len(names) > 1 else matrices[0][None]
        for name, U, VT in zip(names, *spectral_init(batch, new[names[0]].rank)):
            new[name].set_factors(U, VT)

    # The largest first, lest one of them is left for the end.
    by_size = sorted(groups.values(), key=lambda names: -new[names[0]].U.shape[0] * new[names[0]].VT.shape[1])
    for_each(start, by_size, on_gpu=any(layer.U.is_cuda for layer in new.values()))


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put every replacement wherever its original stands (a module may be reached by several names)."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # unlike named_children, every name of a module used twice
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


def matrix_of(layer: nn.Module) -> Tensor:
    """Return a dense layer's weight as the matrix that its factorized form would be a product for.

    Raises:
        ValueError: if `layer` is not a linear layer, a convolution or an embedding.
    """
    for dense, kind in _FACTORIZED_TYPE.items():
        if isinstance(layer, dense):
            return kind.matrix_of(layer)
    raise ValueError(f"{type(layer).__name__} is neither a linear layer, a convolution nor an embedding")
