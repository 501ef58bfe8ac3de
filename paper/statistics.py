"""Means with their spread, and differences between methods that were run with the same seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy
from scipy import stats


class Difference(NamedTuple):
    """The mean of paired differences, with its interval of confidence."""

    mean: float
    half_width: float
    """Half the width of the interval; infinite for a single pair."""

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.mean) > self.half_width

    def text(self, digits: int = 1) -> str:
        """Return both numbers, or the first alone for a single pair."""
        half = f" ± {self.half_width:.{digits}f}" if math.isfinite(self.half_width) else ""
        return f"{self.mean:+.{digits}f}{half}"

    def __str__(self) -> str:
        return self.text()


def paired_difference(values: Sequence[float], base: Sequence[float], confidence: float = 0.95) -> Difference:
    """Return the mean of `values - base`, pair by pair, with Student's t interval.

    Raises:
        ValueError: unless both have the same number of values, at least one.
    """
    if len(values) != len(base) or not values:
        raise ValueError(f"{len(values)} and {len(base)} values do not form pairs")
    differences = numpy.subtract(values, base)
    count = len(differences)
    if count == 1:
        return Difference(float(differences[0]), math.inf)
    t = stats.t.ppf((1 + confidence) / 2, count - 1)
    return Difference(float(differences.mean()), float(t * differences.std(ddof=1) / math.sqrt(count)))


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean, with the standard deviation if there are several values; four digits of what has diverged."""
    form = f".{digits}f" if max(map(abs, values)) < 1e6 else ".4g"
    spread = f" ± {numpy.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{numpy.mean(values):{form}}{spread}"
