"""What makes a module a factorized one. Decay, norms, parameter groups, tables, merging and saving ask for no more.

These are protocols: a module of another project takes part by having the methods, without knowing of this library.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Factorized(Protocol):
    """A module whose weight is made of factors."""

    def factors(self) -> tuple[Tensor, ...]:
        """Return the factor tensors in product order, with optional leading batch dimensions (heads, groups).

        They are parameters, views of parameters or computed from parameters.
        """
        ...


@runtime_checkable
class Contracted(Factorized, Protocol):
    """A factorized module whose weight is another function of its factors than their product in order."""

    def contract(self) -> Tensor:
        """Return the weight as a matrix, differentiable with respect to the factors."""
        ...


@runtime_checkable
class Layer(Factorized, Protocol):
    """A factorized module that stands for a layer of PyTorch's."""

    @property
    def weight(self) -> Tensor:
        """The weight of that layer, differentiable with respect to the factors."""
        ...

    def to_dense(self) -> nn.Module:
        """Return that layer."""
        ...


def is_factorized(module: nn.Module) -> bool:
    """Tell whether a module has `factors()`."""
    return callable(getattr(module, "factors", None))


def is_contracted(module: nn.Module) -> bool:
    """Tell whether a factorized module's weight is another function of its factors than their product in order."""
    return callable(getattr(module, "contract", None))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which products of matrices on `device` keep the precision of the factors."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
