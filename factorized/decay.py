"""Frobenius decay: decay of the product of the factors instead of the factors (Khodak et al. 2021, section 3.2).

The penalty of a layer is `coefficient / 2 * |W|_F^2` with `W = U VT` or `U M VT`. Its gradient is added to `.grad`
before the optimizer's step, so it passes through momentum exactly as L2 weight decay in SGD does. A layer that
contracts its factors in another way has the same penalty of its own `W`.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .patterns import (
    factorized_modules,
    group_by_shape,
    is_contracted,
    is_transposed,
    owner,
    stack,
    stack_factors,
    unwrap,
    without_autocast,
)

_LARGE = 2**18  # elements of a factor; such ones gain nothing from a batch, for which they would have to be copied


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
        ValueError: for any other number of factors.
    """
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


class FrobeniusDecay:
    """Adds `coefficient` times the gradient of `|W|_F^2 / 2` to the gradients of the factors of every layer.

    Either attach it to the optimizer, or call `add_gradients` between the backward pass and the step (after unscaling,
    before clipping). Factors that do not require gradients get none; a factor without a gradient yet gets the decay as
    its gradient; for a factor that is a view of a parameter the gradient is that part of the parameter's. Layers of
    equal shape are handled in one batched operation, in at least single precision.

    Args:
        model: holds the factorized layers. Layers added later are not seen.
        coefficient: the `lam` of L2 decay's `lam * p`; 0 does nothing.
        include, exclude: patterns of module names (`factorized.patterns`); a pattern that matches no factorized layer
            is an error.
        in_backward: let layers on the composed path add `coefficient * W` to the gradient of their weight `W` in the
            backward pass, which is nearly free, instead of the batched operation. Right if every layer is called once
            per step and the loss is unscaled: not with shared layers, gradient accumulation or a gradient scaler.
        worker, workers: process only every `workers`-th layer, beginning with number `worker`. The sum of the
            gradients over all workers is then that of the whole.

    Raises:
        ValueError: for a negative or non-finite coefficient, a worker out of range, or a pattern that matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        coefficient: float,
        *,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        in_backward: bool = False,
        worker: int = 0,
        workers: int = 1,
    ):
        if not 0 <= coefficient < float("inf"):
            raise ValueError(f"coefficient must be a non-negative number, not {coefficient}")
        if not 0 <= worker < workers:
            raise ValueError(f"worker must be one of 0 to {workers - 1}, not {worker}")
        self.coefficient = coefficient
        modules = factorized_modules(model, include, exclude)
        self.modules = {name: modules[name] for name in list(modules)[worker::workers]}
        layers = list(self.modules.values())
        self._groups = []
        for positions in group_by_shape(layers):
            group = [layers[position] for position in positions]
            large = max(factor.numel() for factor in group[0].factors()) > _LARGE
            self._groups += [[layer] for layer in group] if large else [group]
        for layer in layers:
            layer.kernel_decay = coefficient if in_backward else 0.0

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Add the gradients before every `optimizer.step()`; return a handle whose `remove()` ends that.

        Works with a gradient scaler, which unscales before it steps. To clip gradients with the decay in them, call
        `add_gradients` before clipping instead. A step with a closure is refused: call `add_gradients` in the closure.

        Raises:
            ValueError: if the optimizer also applies L2 weight decay to one of the factors (see `parameter_groups`).
        """
        decay_of = {p: group.get("weight_decay", 0) for group in optimizer.param_groups for p in group["params"]}
        twice = [
            name for name, module in self.modules.items() if any(decay_of.get(owner(f), 0) for f in module.factors())
        ]
        if twice and self.coefficient:
            raise ValueError(
                f"{', '.join(twice[:3])} would get both Frobenius and L2 weight decay; build the optimizer with "
                "factorized.parameter_groups(model, weight_decay, frobenius=True)"
            )

        def before_step(optimizer: Optimizer, args, kwargs) -> None:
            if any(closure is not None for closure in (*args[1:], kwargs.get("closure"))):
                raise ValueError("a closure overwrites the gradients of an attached decay; call add_gradients in it")
            # A fused optimizer unscales inside its step; until then gradients are multiplied by grad_scale.
            scale = getattr(optimizer, "grad_scale", None)
            self.add_gradients(1.0 if scale is None else scale.item())

        return optimizer.register_step_pre_hook(before_step)

    @torch.no_grad()
    def add_gradients(self, scale: float = 1.0) -> None:
        """Add `scale * coefficient` times the gradient of `|W|_F^2 / 2` to `.grad` of every factor."""
        if self.coefficient == 0:
            return
        for group in self._groups:
            layers = [layer for layer in group if not getattr(layer, "decayed_in_backward", False)]
            pairs = [(_gradient_of(f), update) for f, update in _decay(layers) if owner(f).requires_grad]
            if pairs:  # at once, while the updates are in the cache
                torch._foreach_add_(*map(list, zip(*pairs)), alpha=scale * self.coefficient)

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """Return `coefficient / 2 * sum of |W|_F^2` over the layers, a 0-dim tensor, for logging."""
        total = torch.zeros(())
        for group in self._groups:
            *left, right = stack_factors(group)
            with without_autocast(right.device):
                for factor in reversed(left):
                    right = factor @ right
            total = total.to(right) + right.square().sum()
        return self.coefficient / 2 * total

    def __repr__(self) -> str:
        return f"FrobeniusDecay(coefficient={self.coefficient}, layers={len(self.modules)})"


def _decay(layers: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Return the factors of layers of equal shape, each with the gradient of `|W|_F^2 / 2`."""
    if layers and is_contracted(layers[0]):
        trained = [[factor for factor in layer.factors() if factor.requires_grad] for layer in layers]
        return [pair for layer, fs in zip(layers, trained) for pair in zip(fs, _contracted_gradients(layer, fs))]
    products = [layer.factors() for layer in layers]
    stacks = stack(products)
    if not stacks:
        return []
    with without_autocast(stacks[0].device):
        gradients = frobgrad(stacks)
    return [pair for same, gradient in zip(zip(*products), gradients) for pair in zip(same, gradient.unbind())]


def _gradient_of(factor: Tensor) -> Tensor:
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


def _contracted_gradients(layer: nn.Module, factors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the gradients of `|W|_F^2 / 2` where `W` is contracted: `W` itself goes back through the contraction."""
    if not factors:
        return ()
    with torch.enable_grad():
        weight = layer.contract()
    return torch.autograd.grad(weight, factors, weight.detach())


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    frobenius: bool = True,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> list[dict]:
    """Return the optimizer's parameter groups: one with L2 `weight_decay`, one without (the factors, if `frobenius`).

    The second group is empty if `frobenius` is off or the model has no factorized layer. Parameters that do not require
    gradients are left out. `include` and `exclude` restrict which layers get Frobenius decay, as in `FrobeniusDecay`.

    Raises:
        ValueError: for a pattern that matches no factorized layer.
    """
    layers = factorized_modules(model, include, exclude).values() if frobenius else ()
    free = {owner(factor) for layer in layers for factor in layer.factors()}
    parameters = [p for p in unwrap(model).parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p not in free], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p in free], "weight_decay": 0.0},
    ]
