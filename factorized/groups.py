"""The optimizer's parameter groups: which parameters get L2 decay, and which the decay of their product."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .decay import FrobeniusDecay
from .leaves import parameters_of
from .patterns import factorized_modules, unwrap
from .usage import check_coefficient, explained


@explained
def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    frobenius: bool = True,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> list[dict]:
    """Return the optimizer's parameter groups: one with L2 `weight_decay`, one without (the factors, if `frobenius`).

    The second group is empty if `frobenius` is off or the model has no factorized layer. It holds the parameters behind
    factors that are views or computed (pruned, reparametrized). Parameters that do not require gradients are left out.
    `include` and `exclude` restrict which layers get Frobenius decay, as in `FrobeniusDecay`.

    Raises:
        TypeError: for what is no model, or no number.
        ValueError: for a negative or infinite `weight_decay`; for a pattern that matches no factorized layer, and as
            `FrobeniusDecay` for factors that decay cannot follow.
    """
    check_coefficient("weight_decay", weight_decay)
    layers = factorized_modules(model, include, exclude) if frobenius else {}
    free = {parameter for name, layer in layers.items() for parameter in parameters_of(layer, name)}
    parameters = [p for p in unwrap(model).parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p not in free], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p in free], "weight_decay": 0.0},
    ]


def describe_decay(optimizer: Optimizer | Iterable[Mapping[str, Any]], decay: FrobeniusDecay | None = None) -> str:
    """Return in words what decays what: `Frobenius decay 5e-4 on 54 tensors of 28 layers; L2 5e-4 on 53 tensors`.

    Tensors that nothing decays come last. Of factors only those that require gradients count.

    Args:
        optimizer: the optimizer, or its parameter groups.
        decay: the Frobenius decay that goes with it, if there is one.
    """
    groups = optimizer.param_groups if isinstance(optimizer, Optimizer) else optimizer
    parts, decayed = [], set()
    if decay is not None and decay.coefficient and decay.modules:
        behind = (parameters_of(layer, name) for name, layer in decay.modules.items())
        decayed = {p for parameters in behind for p in parameters if p.requires_grad}
        kind = "decoupled Frobenius decay" if decay.decoupled else "Frobenius decay"
        tensors, layers = _counted(len(decayed), "tensor"), _counted(len(decay.modules), "layer")
        parts.append(f"{kind} {_short(decay.coefficient)} on {tensors} of {layers}")
    kinds: dict[tuple[str, float], int] = {}
    for group in groups:
        coefficient = float(group.get("weight_decay", 0))
        kind = "decoupled L2" if group.get("decoupled_weight_decay") else "L2"
        params: list[Tensor] = [p for p in group["params"] if coefficient or p not in decayed]
        key = (kind, coefficient) if coefficient else ("", 0.0)
        kinds[key] = kinds.get(key, 0) + len(params)
    undecayed = kinds.pop(("", 0.0), 0)
    parts += [f"{kind} {_short(c)} on {_counted(n, 'tensor')}" for (kind, c), n in kinds.items() if n]
    if undecayed or not parts:
        parts.append(f"no decay on {_counted(undecayed, 'tensor')}")
    return "; ".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _short(coefficient: float) -> str:
    """Return a coefficient as people write it: 0.01, but 5e-4."""
    if 0.01 <= coefficient < 1000:
        return f"{coefficient:.4g}"
    mantissa, exponent = f"{coefficient:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
