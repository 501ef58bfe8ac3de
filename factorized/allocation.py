"""Ranks for the layers of a model that together leave out the least at a given cost.

A layer can have factors of one of its ranks, which leave out the directions beyond it, or stay dense, which leaves out
nothing. Of all layers, directions that keep most for their cost are taken first: with a price on cost, every layer
takes what makes the sum of what it leaves out and its price least, and the price is found at which the budget is met.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy


class Options(NamedTuple):
    """What one layer can become: arrays of one length, in the order of the costs."""

    ranks: numpy.ndarray
    """The ranks that can be chosen; 0 stands for the dense layer."""
    costs: numpy.ndarray
    dropped: numpy.ndarray
    """The error of each rank: the sum of the squared singular values beyond it."""


def options(spectrum: numpy.ndarray, ranks: Sequence[int], costs: Sequence[float], dense: float) -> Options:
    """Return what a layer can become.

    Args:
        spectrum: squared singular values, descending.
        ranks: that it may have, ascending.
        costs: of these ranks.
        dense: cost of the dense layer; ranks that cost as much are left out.
    """
    values = spectrum.astype(float)
    tails = numpy.append(values[::-1].cumsum()[::-1], 0.0)  # what is beyond every rank, without cancellation
    possible, prices = numpy.asarray(ranks, dtype=int), numpy.asarray(costs, dtype=float)
    smaller = prices < dense
    possible, prices = possible[smaller], prices[smaller]
    return Options(numpy.append(possible, 0), numpy.append(prices, dense), numpy.append(tails[possible], 0.0))


def allocate(layers: Sequence[Options], budget: float) -> list[int] | None:
    """Return the rank of each layer, 0 for dense, or None if even the least ranks cost more than the budget.

    The cost is at most the budget, and no single layer can be improved within what is left of it. What is left out is
    the least possible at the cost of the ranks before that rest was spent.
    """

    def chosen(price: float) -> list[int]:
        return [int(numpy.argmin(layer.dropped + price * layer.costs)) for layer in layers]

    def cost(choice: Sequence[int]) -> float:
        return sum(layer.costs[position] for layer, position in zip(layers, choice))

    best = [0] * len(layers)
    if cost(best) > budget:
        return None
    most = max((layer.dropped[0] for layer in layers), default=0.0)
    least = min((numpy.diff(layer.costs).min(initial=numpy.inf) for layer in layers), default=numpy.inf)
    lower, upper = 0.0, 2 * most / least if numpy.isfinite(least) and least > 0 else 1.0
    for _ in range(200):
        price = (lower + upper) / 2
        choice = chosen(price)
        if cost(choice) <= budget:
            best, upper = choice, price
        else:
            lower = price
        if upper - lower <= 1e-12 * upper:
            break
    return [int(layer.ranks[position]) for layer, position in zip(layers, _filled(layers, best, budget))]


def _filled(layers: Sequence[Options], choice: list[int], budget: float) -> list[int]:
    """Return a choice improved, one layer at a time by what gains most for its cost, until nothing fits the budget."""
    choice = list(choice)
    left = budget - sum(layer.costs[position] for layer, position in zip(layers, choice))
    while True:
        best = (0.0, 0, 0)
        for number, (layer, position) in enumerate(zip(layers, choice)):
            extra = layer.costs - layer.costs[position]
            gain = layer.dropped[position] - layer.dropped
            fits = (extra > 0) & (extra <= left) & (gain > 0)
            if fits.any():
                rates = numpy.where(fits, gain / numpy.where(fits, extra, 1), 0)
                step = int(rates.argmax())
                best = max(best, (float(rates[step]), number, step))
        rate, number, step = best
        if rate == 0:
            return choice
        left -= layers[number].costs[step] - layers[number].costs[choice[number]]
        choice[number] = step
