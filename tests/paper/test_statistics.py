"""The statistics in tables, and aligned Markdown."""

import math

import pytest
import scipy.stats

from paper.statistics import mean_and_spread, paired_difference
from paper.tables import table


def test_table():
    text = table(("name", "value"), [("a", 1), ("longer", 20.5)])
    assert text.splitlines() == ["| name   | value |", "|--------|------:|", "| a      |     1 |", "| longer |  20.5 |"]


def test_paired_difference_is_that_of_the_t_test():
    values, base = [93.1, 94.7, 94.2, 90.0], [69.4, 70.8, 81.9, 88.0]
    found = paired_difference(values, base)
    theirs = scipy.stats.ttest_rel(values, base).confidence_interval(0.95)
    assert found.mean - found.half_width == pytest.approx(theirs.low)
    assert found.mean + found.half_width == pytest.approx(theirs.high)
    assert found.is_beyond_chance == (theirs.low > 0)


def test_one_pair_says_nothing():
    found = paired_difference([2.0], [1.0])
    assert (found.mean, found.half_width, found.is_beyond_chance, str(found)) == (1.0, math.inf, False, "+1.0")
    assert str(paired_difference([2.0, 4.0], [1.0, 1.0])).startswith("+2.0 ± 12.7")  # t of one degree of freedom
    with pytest.raises(ValueError, match="2 and 1 values do not form pairs"):
        paired_difference([1.0, 2.0], [1.0])


def test_mean_and_spread():
    assert mean_and_spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert mean_and_spread([1.0], 2) == "1.00"


def test_numbers_that_have_diverged_stay_short():
    assert mean_and_spread([999_999.0], 2) == "999999.00"
    assert mean_and_spread([1e30, 3e30], 2) == "2e+30 ± 1.414e+30"
