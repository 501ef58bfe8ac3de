"""What benchmarks against other packages print: that both sides have equal parameters, and errors as they are."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # where they are started from

import timing  # noqa: E402

from tests.harness import load_program  # noqa: E402


def rows(printed: str) -> list[list[str]]:
    """Return the cells of the table in what was printed, without its two lines of heads."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def run(name: str, monkeypatch, capsys, *arguments: str) -> list[list[str]]:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    load_program(f"benchmarks/{name}").main()
    return rows(capsys.readouterr().out)


def test_without_its_package_a_benchmark_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/some.py"])
    with pytest.raises(SystemExit) as end:
        timing.needed("no_such_module", "no-such-package")
    assert end.value.code == 2
    assert capsys.readouterr().err == "some.py needs no_such_module: pip install no-such-package\n"


def test_the_starts_of_peft_and_ours_leave_what_the_best_product_leaves(monkeypatch, capsys):
    pytest.importorskip("peft")
    table = run("pissa.py", monkeypatch, capsys, "--size", "40", "30", "3", "--repeats", "1")
    sigma = 1 / torch.arange(1, 31)
    expected = (sigma[3:].norm() / sigma.norm()).item()
    errors = {row[1]: float(row[5]) for row in table if row[0] == "k^-1"}
    assert set(errors) == {"ours", "ours, with residual", "peft, pissa", "peft, pissa_niter_16"}
    for error in errors.values():
        assert abs(error - expected) < 1e-3


def test_convolutions_are_compared_at_equal_parameters(monkeypatch, capsys):
    pytest.importorskip("tltorch")
    table = run("tensor_convs.py", monkeypatch, capsys, "--layers", "0", "--batch", "1", "--repeats", "1")
    assert len(table) == 7
    for row in table:
        ours, theirs = (int(count.replace(",", "")) for count in re.findall(r"[\d,]*\d", row[5]))
        assert abs(ours / theirs - 1) < 0.05
