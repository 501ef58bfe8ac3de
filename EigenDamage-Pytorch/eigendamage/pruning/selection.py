"""Which units are removed: those of the lowest scores of all layers together, as many as a target asks for.

A *unit* is a filter of a convolution or, for EigenDamage, a direction of its inputs or outputs. The units of one side
of a layer are a *part*: there is a limit to what each part may lose.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """The outputs or the inputs of a layer."""

    layer: str
    side: str = "outputs"


Kept = Mapping[Part, list[int]]
"""The positions of the units that are left of every part, ascending."""


@dataclass(frozen=True)
class Order:
    """All units in the order of their removal.

    Attributes:
        places: of each unit of a part in that order, from 0; those that must stay come after all places.
        count: of the units.
    """

    places: dict[Part, Tensor]
    count: int

    def kept(self, removed: int) -> dict[Part, list[int]]:
        """Return what is left when the units before place `removed` are gone."""
        return {part: (places >= removed).nonzero().flatten().tolist() for part, places in self.places.items()}


def least_kept(count: int, limit: float) -> int:
    """Return how many of a part's units must stay if at most the fraction `limit` may go; always one."""
    return max(1, count - math.floor(count * limit + 1e-9))


def order(scores: Mapping[Part, Tensor], limit: float, normalize: bool = False) -> Order:
    """Return the order of removal: by score, and among equal ones from all parts alike.

    The units that stay for the limit's sake are the best of their part.

    Args:
        limit: the largest fraction of a part that may be removed.
        normalize: divide the scores by their sum over the part.

    Raises:
        ValueError: for scores that are not finite.
    """
    for part, values in scores.items():
        if not values.isfinite().all():
            raise ValueError(f"scores of {part.layer} are not finite: the statistics or weights hold NaN")
    shares, ranks = [], []
    for values in scores.values():
        values = values.double().cpu()
        total = values.sum()
        shares.append(values / total if normalize and total else values)
        rank = torch.empty(len(values), dtype=torch.float64)
        rank[values.argsort(stable=True)] = torch.arange(len(values), dtype=torch.float64)
        ranks.append(rank)
    fractions = torch.cat([rank / len(rank) for rank in ranks])
    by_fraction = fractions.argsort(stable=True)
    found = by_fraction[torch.cat(shares)[by_fraction].argsort(stable=True)]
    count = len(found)
    places = torch.empty(count, dtype=torch.long)
    places[found] = torch.arange(count)
    parts = places.split([len(rank) for rank in ranks])
    for rank, own in zip(ranks, parts):
        own[rank >= len(rank) - least_kept(len(rank), limit)] = count
    return Order(dict(zip(scores, parts)), count)


def cut_at_share(found: Order, share: float) -> int:
    """Return the place at which a share of all units is gone, as the published `ratio` asks; limits may keep more."""
    return math.floor(share * found.count + 1e-9)


def cut_at_cost(found: Order, cost: Callable[[Kept], int], target: float) -> int:
    """Return the first place at which what is left costs no more than `target`; one unit more would cost more.

    Args:
        cost: of what is kept; never grows as units are removed.

    Raises:
        ValueError: if all that may be removed is not enough.
    """
    least = cost(found.kept(found.count))
    if least > target:
        raise ValueError(f"at least {least:,} would be left")
    low, high = 0, found.count
    while low < high:
        middle = (low + high) // 2
        if cost(found.kept(middle)) <= target:
            high = middle
        else:
            low = middle + 1
    return low
