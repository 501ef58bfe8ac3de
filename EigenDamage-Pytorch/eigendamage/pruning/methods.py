"""The pruning methods by name: what each asks of the statistics, and how it scores.

With W the weight of a layer as a matrix (out, in kh kw), w_n a filter, F the diagonal of the Fisher information, and G
and A the factors of K-FAC (`statistics`), up to the factor 1/2 that all have in common:

    c-obd        sum_m w_nm^2 F_nm
    kron-obd     G_nn w_n A w_n^T
    kron-obs     w_n A w_n^T / [G^-1]_nn
    c-obs        sum_m w_nm^2 / ([G^-1]_nn [A^-1]_mm)
    eigendamage  of directions of the inputs and outputs, in the eigenvectors of A and G (`factorized.tucker2`)

`eigendamage-separable` goes on to take the core apart into a depthwise convolution (`factorized.SeparableConv2d`).

The inverses are of damped matrices. The published scores of the second and third replace w A w^T by w^2 A 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factorized import SeparableConv2d, Tucker2, Tucker2Conv2d, tucker2

from . import obs
from .statistics import Moments


@dataclass(frozen=True)
class Scoring:
    """How scores are computed."""

    damping: float = 1e-3
    """The number added to the diagonal of matrices that are inverted, as a fraction of their mean eigenvalue."""
    published: bool = False
    """Whether Kron-OBD and Kron-OBS have the score of the published code in place of the quadratic form."""
    correction: str = "joint"
    """The correction of the OBS methods: `joint`, the optimum; `single`, as published; `none`."""


SEPARABLE = "eigendamage-separable"
"""The method of `main_prune_separable.py`."""
CORRECTIONS = ("joint", "single", "none")


@dataclass(frozen=True)
class Method:
    """A pruning method."""

    kinds: tuple[str, ...]
    """The statistics that the method needs."""
    score: Callable[[Tensor, Moments, Scoring], Tensor] | None = None
    """The score of filters, from a weight (out, in kh kw), statistics and options: (out,). None for directions."""
    published_kinds: tuple[str, ...] | None = None
    """The statistics that the published score needs; None where there is no other."""
    corrects: bool = False
    """Whether the filters that stay are corrected."""
    basis: str = ""
    """The basis of directions, as for `factorized.tucker2`."""
    form: type[Tucker2Conv2d] = Tucker2Conv2d
    """The class of the layers of which directions are left."""

    @property
    def of_directions(self) -> bool:
        """Whether directions are removed, not filters."""
        return self.score is None

    def needs(self, scoring: Scoring) -> tuple[str, ...]:
        """Return the statistics that it needs with these options."""
        return self.published_kinds if scoring.published and self.published_kinds is not None else self.kinds


def _magnitude(weight: Tensor, moments: Moments, scoring: Scoring) -> Tensor:
    return weight.double().square().sum(1)


def _c_obd(weight: Tensor, moments: Moments, scoring: Scoring) -> Tensor:
    return (weight.double().square() * moments["diagonal"].double()).sum(1)


def _quadratic(weight: Tensor, moments: Moments, scoring: Scoring) -> Tensor:
    """Return w A w^T of every filter, which is the mean square of its output."""
    if scoring.published:
        return weight.double().square() @ moments["row_sums"].double()
    return moments["power"].double()


def _kron_obd(weight: Tensor, moments: Moments, scoring: Scoring) -> Tensor:
    return moments["G"].diagonal().double() * _quadratic(weight, moments, scoring)


def _kron_obs(weight: Tensor, moments: Moments, scoring: Scoring) -> Tensor:
    return _quadratic(weight, moments, scoring) / obs.inverse(moments["G"], scoring.damping).diagonal()


def _c_obs(weight: Tensor, moments: Moments, scoring: Scoring) -> Tensor:
    G, A = (obs.inverse(moments[kind], scoring.damping).diagonal() for kind in ("G", "A"))
    return (weight.double().square() / A).sum(1) / G


METHODS: dict[str, Method] = {
    "c-obd": Method(("diagonal",), _c_obd),
    "kron-obd": Method(("G", "power"), _kron_obd, ("G", "row_sums")),
    "kron-obs": Method(("G", "power"), _kron_obs, ("G", "row_sums"), corrects=True),
    "c-obs": Method(("G", "A"), _c_obs, corrects=True),
    "eigendamage": Method(("G", "channels"), basis="eigen"),
    SEPARABLE: Method(("G", "channels"), basis="eigen", form=SeparableConv2d),
    "activations": Method(("channels",), basis="singular"),
    "hosvd": Method((), basis="singular"),
    "magnitude": Method((), _magnitude),
    "random": Method((), _magnitude),  # the scores are drawn, `random_scores`
}


def random_scores(count: int, generator: torch.Generator) -> Tensor:
    """Return scores that say nothing, as the control."""
    return torch.rand(count, generator=generator, dtype=torch.float64)


def corrected(weight: Tensor, moments: Moments, removed: Tensor, scoring: Scoring, of_weights: bool) -> Tensor:
    """Return a weight (out, in kh kw) without some filters, and the others corrected as the options ask.

    Args:
        of_weights: whether the single corrections are those of C-OBS, of one weight at a time.
    """
    if scoring.correction == "joint":
        return obs.joint(weight, moments["G"], removed, scoring.damping)
    if of_weights:
        return obs.single_weights(weight, moments["G"], moments["A"], removed, scoring.damping)
    return obs.single(weight, moments["G"], removed, scoring.damping)


def directions(layer: Any, moments: Moments, basis: str) -> Tucker2:
    """Return the directions of a convolution, or of the core of one in Tucker-2 form, whose metrics are those there.

    A depthwise core is none: such a layer counts as the convolution that it stands for.
    Behind a 1 x 1 convolution V the second moments of the inputs are V A V^T, and before one of U those of the
    gradients are U^T G U.
    """
    A, G = (moments[kind].double() if kind in moments else None for kind in ("channels", "G"))
    if type(layer) is not Tucker2Conv2d:
        return tucker2(layer.weight.detach(), A, G, basis)
    U, core, VT = (factor.detach().double() for factor in layer.factors())
    A = VT @ VT.mT if A is None else VT @ A @ VT.mT
    G = U.mT @ U if G is None else U.mT @ G @ U
    return tucker2(core, A, G, basis)
