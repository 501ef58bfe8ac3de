"""Figures of runs' events, tables, and the statistics in them."""

import math

import pytest
import scipy.stats

from lab.record import Record
from paper.figures import curves
from paper.statistics import mean_and_spread, paired_difference
from paper.tables import table


def test_curves(tmp_path):
    """Equal last values: their names must not lie on each other."""
    runs = {name: [tmp_path / name / str(seed) for seed in range(2)] for name in ("one", "two", "three")}
    for seed, folder in enumerate(folder for folders in runs.values() for folder in folders):
        record = Record(folder, is_main=True)
        for step in range(3):
            record.scalars({"valid/a": 1.0, "b": 2.0 + seed % 2 + step}, step)
        record.close()
    curves(runs, {"valid/a": "A", "b": "B"}, tmp_path / "figure.png", offset=1)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
    with pytest.raises(KeyError):
        curves(runs, {"c": "C"}, tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


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
