"""Which parameters get which decay: compression-ratio-scaled L2 decay, or Frobenius decay, of the structured ones."""

from torch import Tensor, nn

import factorized


def structured_parameters(model: nn.Module) -> list[Tensor]:
    """Return the parameters that layers declare as structured: by `structured()`, or else their `factors()`."""
    found = []
    for module in model.modules():
        declare = getattr(module, "structured", None) or getattr(module, "factors", None)
        if declare:
            found += declare()
    return found


def parameter_groups(model: nn.Module, weight_decay: float, *, ratio: float, frobenius: bool) -> list[dict]:
    """Return the optimizer's groups: the structured parameters have their own, all others get `weight_decay`.

    Args:
        ratio: the structured parameters get `ratio * weight_decay`.
        frobenius: instead, the factors of layers with Frobenius decay get none.
    """
    if frobenius:
        return factorized.parameter_groups(model, weight_decay)
    structured = set(structured_parameters(model))
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p not in structured], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p in structured], "weight_decay": ratio * weight_decay},
    ]
