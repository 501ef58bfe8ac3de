"""One round's removal: scores, the cut, what stays corrected, and the smaller network."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from factorized import Tucker2, Tucker2Conv2d

from .counting import Cost, DirectionCost, FilterCost, chosen, cost
from .methods import METHODS, Scoring, corrected, directions, random_scores
from .pruned import Pruned
from .removal import remove
from .selection import Kept, Order, Part, cut_at_cost, cut_at_share, order
from .statistics import Moments


class Target(NamedTuple):
    """How much is removed."""

    kind: str
    """`scores`, a share of all scores; or `parameters` or `multiply-adds`, what is left of the dense network's."""
    share: float


class Removed(NamedTuple):
    """What a round has removed."""

    units: int
    of: int
    """The number of units that there were."""
    cost: Cost
    """The cost of what is left."""
    limit: float
    """The largest fraction of a layer's units that could go."""


@dataclass(frozen=True)
class Pruner:
    """What is removed by which rule."""

    method: str
    """The method, a key of `METHODS`."""
    scoring: Scoring = field(default_factory=Scoring)
    limits: tuple[float, ...] = (0.95,)
    """The largest fraction of a layer's units a round may remove; of several the first that lets the target be."""
    normalize: bool = False
    """Whether scores are divided by their sum over the layer."""
    skipped: int = 0
    """The number of first layers that lose nothing."""
    fixed_rotations: bool = False
    """Whether the rotations of methods that remove directions are not trained afterwards."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The statistics that the method needs."""
        return METHODS[self.method].needs(self.scoring)

    def layers(self, pruned: Pruned) -> list[str]:
        """Return the layers that may lose units."""
        return list(pruned.units)[self.skipped :]

    @torch.no_grad()
    def __call__(
        self,
        pruned: Pruned,
        moments: Mapping[str, Moments],
        target: Target,
        dense: Cost,
        size: tuple[int, int],
        generator: torch.Generator,
    ) -> Removed:
        """Remove what the target asks for, in place.

        Args:
            moments: statistics of `layers` by name, of `kinds`.
            dense: cost of the dense network.
            size: of the images, (height, width).
            generator: of the scores of `random`, on the CPU.

        Raises:
            ValueError: if the target cannot be reached, or is reached already; for statistics that are not finite.
        """
        layers = {name: pruned.convolutions[name] for name in self.layers(pruned)}
        if not layers:
            raise ValueError(f"all {len(pruned.units)} layers are to be skipped; none is left to prune")
        method = METHODS[self.method]
        if not method.of_directions and any(isinstance(layer, Tucker2Conv2d) for layer in layers.values()):
            raise ValueError(
                f"the network has layers in Tucker-2 form, whose filters {self.method} cannot remove; "
                "prune it further by a method of directions, such as eigendamage"
            )
        found: dict[str, Tucker2] = {}
        counting: FilterCost | DirectionCost
        kind = "parameters" if target.kind == "scores" else target.kind
        if method.of_directions:
            found = {n: directions(layer, moments.get(n, {}), method.basis) for n, layer in layers.items()}
            scores = {Part(name): f.output_scores for name, f in found.items()}
            scores |= {Part(name, "inputs"): f.input_scores for name, f in found.items()}
            counting = DirectionCost(pruned.model, layers, method.form, kind, size)
        else:
            scores = {
                Part(name): self._scores(layer, moments.get(name, {}), generator) for name, layer in layers.items()
            }
            counting = FilterCost(pruned.model, pruned.flow, pruned.units, kind, size)
        ordered, cut, limit = self._cut(scores, counting, target, dense)
        kept = ordered.kept(cut)
        units = sum(len(places) for places in kept.values())
        if method.of_directions:
            assert isinstance(counting, DirectionCost)
            self._rotate(pruned, found, kept, counting)
        else:
            self._remove(pruned, kept, moments)
        return Removed(ordered.count - units, ordered.count, cost(pruned.model, size), limit)

    def _cut(
        self, scores: Mapping[Part, Tensor], counting: FilterCost | DirectionCost, target: Target, dense: Cost
    ) -> tuple[Order, int, float]:
        """Return the order, the place where it is cut, and the limit that holds."""
        if target.kind == "scores":
            ordered = order(scores, self.limits[0], self.normalize)
            return ordered, cut_at_share(ordered, target.share), self.limits[0]
        whole = dense.of(target.kind)
        for limit in self.limits:
            ordered = order(scores, limit, self.normalize)
            with contextlib.suppress(ValueError):
                return ordered, cut_at_cost(ordered, counting, target.share * whole), limit
        least = counting(ordered.kept(ordered.count)) / whole
        raise ValueError(
            f"{self.method} cannot bring the network to {target.share:g} of its {target.kind} when a layer may lose "
            f"{limit:g} of its units in a round: {least:.4g} is the least; raise the limit or the target"
        )

    def _scores(self, layer: Any, moments: Moments, generator: torch.Generator) -> Tensor:
        if self.method == "random":
            return random_scores(layer.out_channels, generator)
        score = METHODS[self.method].score
        assert score is not None
        return score(layer.weight.detach().flatten(1), moments, self.scoring)

    def _remove(self, pruned: Pruned, kept: Kept, moments: Mapping[str, Moments]) -> None:
        if METHODS[self.method].corrects and self.scoring.correction != "none":
            for (name, _), places in kept.items():
                weight = pruned.model.get_submodule(name).weight
                removed = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
                removed[places] = False
                if removed.any():
                    matrix = weight.detach().flatten(1)
                    of_weights = self.method == "c-obs"
                    new = corrected(matrix, moments[name], removed, self.scoring, of_weights)
                    weight.copy_(new.view(weight.shape))
        after = chosen(pruned.units, kept)
        remove(pruned.model, pruned.flow, pruned.units, after)
        pruned.units = after

    def _rotate(self, pruned: Pruned, found: Mapping[str, Tucker2], kept: Kept, counting: DirectionCost) -> None:
        pruned.frozen = self.fixed_rotations
        for name, f in found.items():
            if counting.saves(kept, name):
                factors = f.kept(kept[Part(name)], kept[Part(name, "inputs")])
                layer = rotated(pruned.convolutions[name], METHODS[self.method].form, *factors)
                parent, _, own = name.rpartition(".")
                setattr(pruned.model.get_submodule(parent), own, layer)
        pruned.freeze()


def rotated(layer: Any, form: type[Tucker2Conv2d], U: Tensor, core: Tensor, VT: Tensor) -> Tucker2Conv2d:
    """Return a convolution in Tucker-2 form; of one that has it already the factors around the core are joined."""
    if type(layer) is Tucker2Conv2d:
        U, VT = layer.U.double() @ U, VT @ layer.VT.double()
    U, core, VT = form.decompose((U, core, VT))
    new = form._like(layer, (U.shape[1], len(VT)), device=layer.weight.device, dtype=layer.weight.dtype)
    new.channels_last = getattr(layer, "channels_last", False)
    new._take_over(layer)
    return new.set_factors(U, core, VT).requires_grad_(True)
