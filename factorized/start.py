"""How the factors of a model's new layers start: from the weights, and from what these see of data if that is known."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from .linalg.parallel import for_each
from .linalg.spectral import spectral_init
from .linalg.weighted import squared_spectrum, weighted_init
from .statistics import Moments
from .usage import class_name, listed

Stats = Mapping[str, Moments]

_LARGE_MATRIX = 2**18  # elements of a matrix


def check_values(layers: Mapping[str, Any]) -> None:
    """Raise ValueError for a weight that has no spectral start."""
    for name, layer in layers.items():
        called = f"{name or '(root)'} ({class_name(type(getattr(layer, 'module', layer)))})"
        if layer.weight.is_meta:
            raise ValueError(
                f"{called}: its weight is on the meta device and has no values; load the weights first, or start the "
                "factors otherwise, as with init='kaiming'"
            )
        finite = layer.weight.isfinite()
        if not finite.all():
            kind = "NaN" if layer.weight.isnan().any() else "infinite"
            raise ValueError(
                f"{called}: {finite.logical_not().sum()} of {finite.numel()} weights are not finite ({kind}); "
                "mend them, exclude the layer, or start the factors otherwise, as with init='kaiming'"
            )


def check_stats(stats: Stats, layers: Mapping[str, Any], forms: Mapping[str, Any]) -> None:
    """Raise an error for statistics that are none, or of another model than the one with these layers."""
    if not isinstance(stats, Mapping) or not all(isinstance(moments, Moments) for moments in stats.values()):
        raise TypeError(f"stats is what factorized.collect(model, batches) returns, not a {type(stats).__name__}")
    known = [name for name in layers if name in stats]
    if layers and not known:
        raise ValueError(
            f"stats are of another model: they hold {listed(stats) or 'nothing'}, and the layers to factorize are "
            f"{listed(layers)}; collect them from this model before it is factorized"
        )
    for name in known:
        m, n = forms[name].matrix_shape(layers[name])
        products = forms[name].product_count(layers[name])
        lead = () if products == 1 else (products,)
        for found, size in zip(_metrics(forms[name], layers[name], stats[name]), (n, m)):
            if found is not None and found.shape not in ((*lead, size), (*lead, size, size)):
                raise ValueError(
                    f"stats are of another model: those of {name or '(root)'} have the shape {tuple(found.shape)}, and "
                    f"{(*lead, size, size)} or the diagonal {(*lead, size)} fits the layer"
                )


def warn_of_missing(stats: Stats, names: list[str], stacklevel: int) -> None:
    """Warn of layers that no statistics are there for.

    Args:
        stacklevel: of the warning, as seen from the caller.
    """
    if missing := [name or "(root)" for name in names if name not in stats]:
        warnings.warn(
            f"no statistics of {listed(missing)}, which start from their weights alone: the data never came by, or how "
            "it meets them is not known",
            stacklevel=stacklevel + 1,
        )


def spectra(layers: Mapping[str, Any], forms: Mapping[str, Any], stats: Stats) -> dict[str, numpy.ndarray]:
    """Return the squared singular values of each dense layer's matrix, weighted by what it sees if that is known.

    What they add up to says how much a layer matters. With gradients it is the second-order estimate of what the loss
    would lose without the layer; else nothing is known of that, and it is 1, or the mean of those that it is known of.
    """
    found: dict[str, numpy.ndarray] = {}
    known: dict[str, float] = {}

    def decompose(name: str) -> None:
        layer, form, moments = layers[name], forms[name], stats.get(name)
        metrics = _metrics(form, layer, moments)
        matrix = form.matrix_of(layer)
        parts = [(matrix, *metrics)]
        if matrix.dim() == 3:  # products of one rank count together
            parts = [*zip(matrix, *(metric if metric is not None else [None] * len(matrix) for metric in metrics))]
        scales = [math.prod(_mean(metric) for metric in part[1:] if metric is not None) for part in parts]
        scales = scales if any(scales) else [1.0] * len(scales)
        values = numpy.sum([scale * squared_spectrum(*part).numpy() for scale, part in zip(scales, parts)], axis=0)
        if moments is not None and moments.outputs is not None:
            known[name] = values.sum()
        found[name] = values / max(values.sum(), numpy.finfo(float).tiny)

    for_each(decompose, list(layers), on_gpu=any(layer.weight.is_cuda for layer in layers.values()))
    usual = sum(known.values()) / len(known) if known else 1.0
    return {name: found[name] * known.get(name, usual) for name in layers}


def _mean(metric: Tensor) -> float:
    return float((metric if metric.dim() == 1 else metric.diagonal()).mean())


def spectral_start(dense: Mapping[str, Any], new: Mapping[str, Any], stats: Stats) -> None:
    """Start `new` from the weights of `dense`, and note the error.

    Layers without statistics that have equal shape and rank are decomposed in one batch, unless they are large.
    """
    groups: dict[tuple, list[str]] = {}
    for name, layer in new.items():
        # A large matrix gains nothing from a batch, for which it would have to be copied.
        alone = name if _size(layer) > _LARGE_MATRIX or name in stats else None
        groups.setdefault((layer.U.shape, layer.VT.shape, layer.U.dtype, layer.U.device, alone), []).append(name)

    def start(names: list[str]) -> None:
        first = names[0]
        layer = new[first]
        metrics = _metrics(type(layer), dense[first], stats.get(first))
        if any(metric is not None for metric in metrics):
            U, VT, error = weighted_init(layer.matrix_of(dense[first]).detach(), layer.rank, *metrics)
            layer.set_factors(U, VT)
            layer.start_error = error
            return
        for name in names if stats else ():
            new[name].start_note = "started from its weight alone, as no inputs of it are known"
        matrices = [new[name].matrix_of(dense[name]).detach() for name in names]
        batch = torch.stack(matrices) if len(names) > 1 else matrices[0][None]
        U, VT = spectral_init(batch, new[first].rank)
        errors = _plain_errors(batch, U)
        for position, name in enumerate(names):
            new[name].set_factors(U[position], VT[position])
            new[name].start_error = float(errors[position])

    # The largest first, lest one of them is left for the end.
    by_size = sorted(groups.values(), key=lambda names: -_size(new[names[0]]))
    for_each(start, by_size, on_gpu=any(layer.U.is_cuda for layer in new.values()))


def _size(layer: Any) -> int:
    """Return the elements of what the factors multiply out to."""
    return layer.U[..., 0].numel() * layer.VT.shape[-1]


def _metrics(form: Any, layer: Any, moments: Moments | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the metrics of the columns and of the rows of a weight's matrix, or batches of them."""
    if moments is None:
        return None, None
    inputs, outputs, positions, on_rows = moments
    if isinstance(positions, Tensor) and outputs is None:  # a matrix counts as often as it is applied
        shares = (positions / positions.double().mean().clamp_min(1)).to(inputs)
        inputs = inputs * shares.view(-1, *[1] * (inputs.dim() - 1))
    return form.metrics(layer, *((outputs, inputs) if on_rows else (inputs, outputs)))


def _plain_errors(batch: Tensor, U: Tensor) -> Tensor:
    """Return `|W - U VT| / |W|` of balanced factors of the best product: squared columns are singular values.

    A batch of products counts as one weight.
    """
    if U.shape[-1] >= min(batch.shape[-2:]):
        return torch.zeros(len(batch))
    kept = U.double().square().sum(-2).square().flatten(1).sum(1)
    whole = torch.linalg.vector_norm(batch.flatten(1), dim=1, dtype=torch.float64).square()
    return (1 - kept / whole.clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(0).sqrt()
