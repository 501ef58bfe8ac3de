"""Frobenius decay: decay of the product of the factors instead of the factors (Khodak et al. 2021, section 3.2).

The penalty of a layer is `coefficient / 2 * |W|_F^2` with `W = U VT` or `U M VT`. Its gradient is added to `.grad`
before the optimizer's step, so it passes through momentum exactly as L2 weight decay in SGD does. A layer that
contracts its factors in another way has the same penalty of its own `W`. Optimizers that rescale gradients, such as
AdamW, would rescale the decay with them: for these it is decoupled, and shrinks the factors after the step instead.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .attachment import Attachment, attached
from .gradients import gradient_of, updates_of
from .leaves import is_direct, parameters_of, renewed_factors, whole
from .patterns import (
    factorized_modules,
    group_by_shape,
    owner,
    stack_factors,
)
from .protocol import without_autocast
from .usage import check_coefficient, explained, listed, shown

# Elements of a factor. Larger ones gain nothing from a batch, for which they would have to be copied.
_LARGE_FACTOR = 2**18


class FrobeniusDecay:
    """Decay of `|W|_F^2 / 2` of every factorized layer of a model, times `coefficient`.

    Making one changes nothing. Either attach it to the optimizer, or call `add_gradients` between the backward pass and
    the step (after unscaling, before clipping). Factors that do not require gradients get none; a factor without a
    gradient yet gets the decay as its gradient; for a factor that is a view of a parameter the gradient is that part of
    the parameter's, and for one that is computed (pruned, reparametrized) it goes on to the parameters behind it.
    Layers of equal shape are handled in one batched operation, in at least single precision.

    Args:
        model: holds the factorized layers. Layers added later are not seen.
        coefficient: the `lam` of L2 decay's `lam * p`; 0 does nothing.
        include, exclude: patterns of module names (`factorized.patterns`); a pattern that matches no factorized layer
            is an error.
        decoupled: act after the optimizer's step, with the `lr` of the factor's parameter group, as AdamW's own weight
            decay does: `factor -= lr * coefficient * gradient of |W|_F^2 / 2`. Needs `attach`.
        strict: False to accept a model without a factorized layer, of which nothing is decayed.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for a negative or non-finite coefficient; for a pattern that matches nothing; if there is no layer
            to decay; for factors that were computed where decay cannot follow.
    """

    @explained
    def __init__(
        self,
        model: nn.Module,
        coefficient: float,
        *,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        decoupled: bool = False,
        strict: bool = True,
    ):
        _check_arguments(model, coefficient)
        self._coefficient = float(coefficient)
        self.decoupled = decoupled
        self.modules = factorized_modules(model, include, exclude)
        if strict and not self.modules:
            _refuse_nothing(model)
        for name, layer in self.modules.items():
            parameters_of(layer, name)
        layers: list[Any] = list(self.modules.values())
        self._groups: list[list[Any]] = []
        for positions in group_by_shape(layers):
            group = [layers[position] for position in positions]
            large = max(factor.numel() for factor in group[0].factors()) > _LARGE_FACTOR
            self._groups += [[layer] for layer in group] if large else [group]

    @property
    def coefficient(self) -> float:
        """The coefficient, which stays what it was made with."""
        return self._coefficient

    @coefficient.setter
    def coefficient(self, value: float) -> None:
        raise AttributeError(
            "the coefficient stays what it was made with: remove() what attach returned, and attach a decay of another"
        )

    def attach(self, optimizer: Optimizer, in_backward: bool = False) -> Attachment:
        """Let every `optimizer.step()` decay, from now on; return a handle whose `remove()` ends all of it.

        Works with a gradient scaler, which unscales before it steps; with gradient accumulation; with a closure, after
        which the gradients are added each time that the optimizer calls it (Lightning always passes one; the loss that
        `torch.optim.LBFGS` gets then has the penalty in it, as its line search needs); and with optimizers inside of
        others (accelerate, before or after `prepare`). Gradients that are clipped before the step do not hold the decay
        yet: to clip it, too, do not attach, and call `add_gradients` before clipping (in Lightning, in
        `configure_gradient_clipping`).

        A deep copy of the optimizer decays, too, namely the copied parameters. As PyTorch's hooks, the decay is part of
        neither a pickled optimizer nor its `state_dict`: attach it to the restored optimizer.

        Args:
            optimizer: holds every factor that requires gradients, in groups without L2 decay (`parameter_groups`).
            in_backward: let layers that compose their weight add `coefficient * W` to its gradient in the backward
                pass, which is nearly free; the batched operation before the step is left with the others. Right if a
                step has one backward pass that uses each layer's weight once, of an unscaled loss: not with shared
                layers, gradient accumulation or a gradient scaler.

        Raises:
            TypeError: if there is no optimizer in what is given as one.
            ValueError: if the optimizer lacks a factor, or applies L2 weight decay to one; if a decay of one of the
                layers is attached already; if a decoupled decay is to act in the backward pass.
        """
        return Attachment(self, optimizer, in_backward)

    def add_gradients(self, scale: float = 1.0) -> None:
        """Add `scale * coefficient` times the gradient of `|W|_F^2 / 2` to `.grad` of every factor.

        Raises:
            ValueError: if a decay of one of the layers is attached, which would be added once more at the step; if this
                one is decoupled.
        """
        if self.decoupled:
            raise ValueError("a decoupled decay acts after the step and adds no gradients: attach it to the optimizer")
        if twice := attached(self.modules):
            raise ValueError(f"the decay of {listed(twice)} is attached to an optimizer, whose step adds the gradients")
        self._add(scale)

    @torch.no_grad()
    def _add(self, scale: float = 1.0) -> None:
        for pairs in self._updates():
            gradients, updates = zip(*((gradient_of(part), update) for part, update in pairs))
            torch._foreach_add_(gradients, updates, alpha=scale * self.coefficient)

    @torch.no_grad()
    def _shrink(self, rates: Mapping[Tensor, float | Tensor]) -> None:
        """Subtract the gradient of `|W|_F^2 / 2` from every factor, times the rate of its parameter."""
        for pairs in self._updates():
            parts, updates, shares = zip(*((part, update, rates[owner(part)]) for part, update in pairs))
            if any(isinstance(share, Tensor) for share in shares):
                updates = tuple(update * share for update, share in zip(updates, shares))
            else:
                updates = torch._foreach_mul(updates, shares)
            torch._foreach_sub_(parts, updates)

    def _updates(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield what is trained of the factors, each with the gradient of `|W|_F^2 / 2`, while that is in the cache.

        Layers whose backward pass has added theirs are left out.
        """
        for group in self._groups if self.coefficient else ():
            pairs = updates_of([layer for layer in group if not _acted(layer)])
            if pairs := [(part, update) for part, update in pairs if owner(part).requires_grad]:
                yield pairs

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """Return `coefficient / 2 * sum of |W|_F^2` over the layers, a 0-dim tensor, for logging.

        Where parameters are sharded among processes, all of them must call it.
        """
        total = torch.zeros(())
        for group in self._groups:
            for layer in group:
                if not is_direct(layer):
                    renewed_factors(layer)
            *left, right = stack_factors(group)
            with without_autocast(right.device):
                for factor in reversed(left):
                    right = factor @ right
            total = total.to(right) + right.square().sum()
        return self.coefficient / 2 * whole(total)

    def __repr__(self) -> str:
        decoupled = ", decoupled=True" if self.decoupled else ""
        return f"FrobeniusDecay(coefficient={self.coefficient}, layers={len(self.modules)}{decoupled})"


def _check_arguments(model: object, coefficient: object) -> None:
    if not isinstance(model, nn.Module):
        usage = "FrobeniusDecay(model, coefficient).attach(optimizer)"
        raise TypeError(f"the first argument is the model, a torch.nn.Module, not {shown(model)}: {usage}")
    if any(kind.__name__ == "FullyShardedDataParallel" for m in model.modules() for kind in type(m).__mro__):
        raise ValueError(
            "FullyShardedDataParallel keeps factors as flat pieces, of which there is no product; shard the model with "
            "torch.distributed.fsdp.fully_shard instead"
        )
    check_coefficient("coefficient", coefficient)


def _refuse_nothing(model: nn.Module) -> None:
    if layers := factorized_modules(model):
        raise ValueError(
            f"include and exclude leave none of the {len(layers)} factorized layers, so that nothing would be decayed; "
            "pass strict=False if that is meant"
        )
    raise ValueError(
        "this model has no factorized layer, so that nothing would be decayed: call factorized.factorize(model, ...) "
        "before, or pass strict=False if that is meant"
    )


def _acted(layer: Any) -> bool:
    """Tell whether a backward pass has added a layer's decay."""
    kernel_decay = getattr(layer, "kernel_decay", None)
    return kernel_decay is not None and kernel_decay.mark.grad is not None
