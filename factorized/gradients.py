"""The gradient of `|W|_F^2 / 2` with respect to the factors of `W`, or to the parameters behind them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .leaves import is_direct, parameters_of, renewed_factors
from .patterns import is_transposed, owner, stack
from .protocol import is_contracted, without_autocast
from .usage import check_matrices


def frobgrad(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of `|product of factors|_F^2 / 2` with respect to each of one, two or three factors.

    Through the small Gram matrices, in `O(rank^2 (m + n))`:

        W              W
        U, VT          U (VT VT^T)                 (U^T U) VT
        U, M, VT       U (M VT)(M VT)^T            (U^T U) M (VT VT^T)            (U M)^T (U M) VT

    Args:
        factors: matrices in product order, shapes (..., m, r), [(..., r, r),] (..., r, n). Leading dimensions are a
            batch of independent products.

    Raises:
        TypeError: for what are no matrices.
        ValueError: for any other number of factors.
    """
    check_matrices("frobgrad", factors)
    # For batches of small matrices bmm has half the overhead of the general matmul.
    mm = torch.bmm if factors and factors[0].dim() == 3 else torch.matmul

    def times(left: Tensor, right: Tensor) -> Tensor:
        """The product, laid out in memory as its left factor."""
        return mm(right.mT, left.mT).mT if is_transposed(left) else mm(left, right)

    if len(factors) == 1:
        return [factors[0]]
    if len(factors) == 2:
        U, VT = factors
        return [times(U, mm(VT, VT.mT)), mm(mm(U.mT, U), VT)]
    if len(factors) == 3:
        U, M, VT = factors
        left, right = mm(U.mT, U), mm(VT, VT.mT)
        M_right = mm(M, right)
        return [mm(U, mm(M_right, M.mT)), mm(left, M_right), mm(mm(M.mT, mm(left, M)), VT)]
    raise ValueError(f"Frobenius decay is defined for one to three factors, not {len(factors)}")


def updates_of(layers: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """Return tensors that are trained, of layers of equal shape, each with the gradient of `|W|_F^2 / 2`.

    The tensors are the factors where these are parameters or views of them, else the parameters behind them.
    """
    if layers and is_contracted(layers[0]):
        return [pair for layer in layers for pair in _through_graph(layer)]
    computed = [layer for layer in layers if not is_direct(layer)]
    products = [layer.factors() for layer in layers if layer not in computed]
    pairs = [pair for layer in computed for pair in _through_graph(layer)]
    for same, gradient in zip(zip(*products), _gradients_of(products)):
        pairs += zip(same, gradient.unbind())
    return pairs


def _gradients_of(products: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return `frobgrad` of products of equal shapes, stacked."""
    stacks = stack(products)
    if not stacks:
        return []
    with without_autocast(stacks[0].device):
        return frobgrad(stacks)


def _through_graph(layer: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the parameters behind the factors, each with the gradient of `|W|_F^2 / 2`, by automatic differentiation.

    Where `W` is contracted, `W` itself goes back through the contraction; else the factors' gradients do.
    """
    parameters = [parameter for parameter in parameters_of(layer) if parameter.requires_grad]
    if not parameters:
        return []
    factors: Sequence[Tensor] = renewed_factors(layer)
    if is_contracted(layer):
        with torch.enable_grad():
            outputs = [layer.contract()]
        gradients = [output.detach() for output in outputs]
    else:
        found = [gradient[0].to(factor.dtype) for gradient, factor in zip(_gradients_of([factors]), factors)]
        trained = [(factor, gradient) for factor, gradient in zip(factors, found) if factor.requires_grad]
        outputs, gradients = map(list, zip(*trained))
    return list(zip(parameters, torch.autograd.grad(outputs, parameters, gradients)))


def gradient_of(factor: Tensor) -> Tensor:
    """Return the part of its parameter's gradient that belongs to a factor, to be written to; zero if there is none."""
    parameter = owner(factor)
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if parameter is factor:
        return parameter.grad
    if parameter.grad.stride() != parameter.stride():  # the view below needs the gradient laid out as the parameter
        parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
    offset = factor.storage_offset() - parameter.storage_offset() + parameter.grad.storage_offset()
    return parameter.grad.as_strided(factor.shape, factor.stride(), offset)
