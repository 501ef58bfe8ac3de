"""From the factors of a module to the parameters behind them, which an optimizer updates.

A factor usually is a parameter, or a view of one. A factor can also be computed from other parameters: by pruning or
weight normalization (`torch.nn.utils`), which leave a tensor in the parameter's place that a forward pass renews, or by
a parametrization, which computes the factor whenever it is read.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .patterns import owner


def is_direct(layer: Any) -> bool:
    """Tell whether every factor is a parameter or a view of one, rather than computed from parameters.

    A view of a parameter that is sharded among processes counts as computed, since views do not share memory there.
    """
    return all(
        isinstance(owner(factor), nn.Parameter) and (owner(factor) is factor or not is_sharded(factor))
        for factor in layer.factors()
    )


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a `DTensor`, of which every process holds a part (`fully_shard`)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as every process sees it, if it is sharded; then all of them must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.enable_grad()
def renewed_factors(layer: Any) -> tuple[Tensor, ...]:
    """Return the factors as the next forward pass will see them, computed ones with the graph of their computation."""
    for module in layer.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):  # without the iteration that belongs to a forward pass
                setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
            elif isinstance(hook, (BasePruningMethod, WeightNorm)):
                hook(module, ())
    return tuple(layer.factors())


def parameters_of(layer: Any, name: str = "") -> list[Tensor]:
    """Return the parameters behind the factors, each once, in the order of the factors.

    Args:
        name: what an error calls the layer.

    Raises:
        ValueError: if a factor is a tensor that was computed once, which no longer follows its parameters.
    """
    before = tuple(layer.factors())
    if all(isinstance(owner(factor), nn.Parameter) for factor in before):
        return list(dict.fromkeys(owner(factor) for factor in before))
    found: dict[Tensor, None] = {}
    for old, new in zip(before, renewed_factors(layer)):
        parameter = owner(new)
        if isinstance(parameter, nn.Parameter):
            found[parameter] = None
        elif new.grad_fn is None:
            continue  # computed from nothing that requires gradients
        elif owner(old) is parameter:
            raise ValueError(
                f"{name or type(layer).__name__}: a factor is a tensor that was computed once, so that decay cannot "
                "reach the parameters behind it; compute it in factors(), or use torch.nn.utils.parametrize"
            )
        else:
            found.update(dict.fromkeys(_leaves(new)))
    return list(found)


def _leaves(tensor: Tensor) -> list[Tensor]:
    """Return the leaves that require gradients in the graph of a computed tensor."""
    found, seen, waiting = [], set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where gradients are accumulated
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found
