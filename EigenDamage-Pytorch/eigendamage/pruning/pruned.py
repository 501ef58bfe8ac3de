"""A pruned network together with what it takes to build it again: its name, what is left of it, and no code."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

import factorized
from factorized import Tucker2Conv2d

from .. import networks
from ..flow import Flow
from .removal import all_units, remove


@dataclass
class Pruned:
    """A network and what is left of it."""

    network: str
    depth: int
    classes: int
    model: Any = field(repr=False)
    units: dict[str, list[int]] = field(repr=False)
    """The filters that are left of each convolution, as numbered in the dense network."""
    frozen: bool = False
    """Whether the rotations of layers in Tucker-2 form are not trained."""

    @classmethod
    def dense(cls, network: str, depth: int, classes: int) -> "Pruned":
        """Return a network of which nothing is removed yet.

        Raises:
            ValueError: as `networks.build`.
        """
        model = networks.build(network, depth, classes)
        return cls(network, depth, classes, model, all_units(model, model.flow()))

    @property
    def flow(self) -> Flow:
        """How the channels run."""
        return self.model.flow()

    @property
    def convolutions(self) -> dict[str, Any]:
        """The convolutions by name, dense or in Tucker-2 form, in the order of the forward pass."""
        return {name: self.model.get_submodule(name) for name in self.units}

    def describe(self) -> dict:
        """Return plain values from which `rebuild` makes a network of this form."""
        return {
            "network": self.network,
            "depth": self.depth,
            "classes": self.classes,
            "units": {name: list(numbers) for name, numbers in self.units.items()},
            "structure": factorized.structure(self.model),
            "frozen": self.frozen,
        }

    @classmethod
    def rebuild(cls, description: dict) -> "Pruned":
        """Return a network of the form that `describe` has described; its weights are any, to be loaded.

        Raises:
            KeyError, TypeError, ValueError: for what no `describe` returned.
        """
        dense = cls.dense(description["network"], description["depth"], description["classes"])
        units = {name: list(numbers) for name, numbers in description["units"].items()}
        if units.keys() != dense.units.keys():
            raise ValueError("its layers are others than those of the network")
        model: nn.Module = remove(dense.model, dense.flow, dense.units, units)
        if description["structure"]:
            model = factorized.restructure(model, description["structure"])
        pruned = cls(dense.network, dense.depth, dense.classes, model, units, description["frozen"])
        pruned.freeze()
        return pruned

    def freeze(self) -> None:
        """Leave rotations out of training if they are to be fixed."""
        for layer in self.convolutions.values():
            if isinstance(layer, Tucker2Conv2d):
                layer.U.requires_grad_(not self.frozen)
                layer.VT.requires_grad_(not self.frozen)
