"""How much a decay acts over a whole training run (not a question of the coefficient alone).

    B = sum over steps of lr * coefficient / (1 - momentum)

A weight that L2 decay alone acts on ends at about `exp(-B)` of its start. Below 0.5 or so, no decay has acted yet, of
whichever kind.
"""

import math
from collections.abc import Iterable

from .usage import shown


def decay_budget(lrs: Iterable[float], coefficient: float, momentum: float = 0.0) -> float:
    """Return `B = sum(lrs) * coefficient / (1 - momentum)`, a number without unit.

    Args:
        lrs: learning rate of every optimizer step.
        coefficient: of the decay, L2 or Frobenius.
        momentum: of SGD; 0 for decoupled decay, which does not go through momentum.

    Raises:
        ValueError: for a rate or coefficient that is negative or not finite, or a momentum outside [0, 1).
    """
    return _total(lrs, momentum) * _checked("coefficient", coefficient)


def coefficient_for(budget: float, lrs: Iterable[float], momentum: float = 0.0) -> float:
    """Return the coefficient whose `decay_budget` over these rates is `budget`.

    Raises:
        ValueError: as `decay_budget`, and if all rates are zero, where no coefficient would do.
    """
    budget, total = _checked("budget", budget), _total(lrs, momentum)
    if total == 0:
        raise ValueError("there is no coefficient for rates that are all zero, or for no step at all")
    return budget / total


def _total(lrs: Iterable[float], momentum: float) -> float:
    if isinstance(lrs, str) or not isinstance(lrs, Iterable):
        raise ValueError(
            f"lrs must hold the learning rate of every step, for example [0.1] * steps; it is {shown(lrs)}"
        )
    if not _checked("momentum", momentum) < 1:
        raise ValueError(f"momentum must be below 1, not {momentum}")
    return math.fsum(_checked("a learning rate", lr) for lr in lrs) / (1 - momentum)


def _checked(name: str, value: float) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, RuntimeError):  # of what is no number, whatever else it is
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number, at least 0, not {shown(value)}")
    return number
