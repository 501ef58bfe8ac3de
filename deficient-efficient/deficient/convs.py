"""The convolution classes that `--conv` names, as `Name` or `Name_hyper`: TensorTrain_0.234, Shuffle_4, ACDC."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from factorized import CPConv2d, TensorTrainConv2d, TuckerConv2d

from . import hashed
from .acdc import ACDCConv2d
from .hashed import HashedConv2d
from .layers import LowRankPointwise, ShuffleConv2d, TiedConv2d, separable

# (in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=False) -> a convolution
MakeConv = Callable[..., nn.Module]


@dataclass(frozen=True)
class Kind:
    """A family of convolution classes.

    Attributes:
        make: from a hyper-parameter to a class.
        hyper: what the hyper-parameter is, in words; empty for none.
        least, most: its range.
        whole: it is rounded to an integer.
        default: without one in the name; None if it must be given.
        frobenius: whether Frobenius decay is defined.
        spectral: whether there is a spectral initialization.
    """

    make: Callable[[float], MakeConv]
    hyper: str = ""
    least: float = 0.0
    most: float = math.inf
    whole: bool = False
    default: float | None = None
    frobenius: bool = True
    spectral: bool = False

    def parse(self, text: str) -> float:
        """Return the hyper-parameter.

        Raises:
            ValueError: if it is out of range.
        """
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if self.whole and math.isfinite(value):
            value = round(value)
        if not (self.least <= value <= self.most and 0 < value < math.inf):
            lowest = f"at least {self.least:g}" if self.least else "above 0"
            highest = f" and at most {self.most:g}" if math.isfinite(self.most) else ""
            raise ValueError(f"the {self.hyper} must be {lowest}{highest}, not {text}")
        return value


def _tensor(kind: type[nn.Module]) -> Kind:
    def make(rank_scale: float) -> MakeConv:
        def conv(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=False):
            return kind(in_channels, out_channels, kernel_size, rank_scale, stride, padding, dilation, bias)

        return conv

    return Kind(make, "rank scale", most=1, spectral=True)


def _dense(*_) -> MakeConv:
    return partial(nn.Conv2d, bias=False)


def _hashed(budget: Callable[[int, int, int], int], is_separable: bool) -> MakeConv:
    """Return hashed convolutions, which have a bias whether asked for or not, with a table of so many entries."""

    def conv(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=False):
        entries = budget(in_channels, out_channels, kernel_size)
        return HashedConv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, True,
            entries=entries, separable=is_separable,
        )  # fmt: skip

    return conv


def _hashed_pointwise(share: float) -> MakeConv:
    return _hashed(lambda n, m, k: hashed.full_budget(share, n, m, 1), True)


KINDS = {
    "Conv": Kind(_dense, frobenius=False),
    "Sep": Kind(lambda _: partial(separable, nn.Conv2d), frobenius=False),
    "TensorTrain": _tensor(TensorTrainConv2d),
    "Tucker": _tensor(TuckerConv2d),
    "CP": _tensor(CPConv2d),
    "Generic": Kind(lambda x: partial(separable, LowRankPointwise, rank_scale=x), "rank scale", spectral=True),
    "LR": Kind(lambda x: partial(TiedConv2d, rank_scale=x), "rank scale"),
    "Shuffle": Kind(lambda n: partial(ShuffleConv2d, groups=n), "number of groups", 1, whole=True, frobenius=False),
    "Hashed": Kind(lambda x: _hashed(partial(hashed.full_budget, x), False), "share of weights", most=1),
    "SepHashed": Kind(_hashed_pointwise, "share of pointwise weights", most=1),
    "HashedDecimate": Kind(lambda _: _hashed(hashed.decimated_budget, False)),
    "SepHashedDecimate": Kind(lambda _: _hashed(hashed.decimated_pointwise_budget, True)),
    "ACDC": Kind(lambda n: partial(ACDCConv2d, layers=n), "number of layers", 2, 1000, whole=True, default=12),
    "OriginalACDC": Kind(lambda _: partial(ACDCConv2d, layers=12, original=True)),
}


def split(text: str) -> tuple[Kind, float | None]:
    """Return the family and the hyper-parameter of a name; None for a family that has none.

    Raises:
        ValueError: for an unknown name, a hyper-parameter out of range, missing, or where there is none.
    """
    name, *hypers = text.split("_")
    kind = KINDS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, KINDS, 1, 0.6)
        known = f"did you mean {near[0]}?" if near else f"choose {', '.join(KINDS)}"
        raise ValueError(f"unknown convolution class {text}: {known}")
    try:
        if len(hypers) > 1:
            raise ValueError("it has more than one underscore")
        if hypers and not kind.hyper:
            raise ValueError("it takes no hyper-parameter")
        if hypers:
            return kind, kind.parse(hypers[0])
        if kind.hyper and kind.default is None:
            raise ValueError(f"it needs a {kind.hyper}, as in {name}_{4 if kind.whole else 0.2}")
    except ValueError as error:
        raise ValueError(f"convolution class {text}: {error}") from None
    return kind, kind.default


def conv_class(text: str) -> MakeConv:
    """Return the convolution class of this name.

    Raises:
        ValueError: as `split`.
    """
    kind, hyper = split(text)
    return kind.make(hyper)
