"""The mean of checkpoints."""

import average_checkpoints
import pytest
import torch

from tests.transformer import tiny


def write(path, **weights):
    torch.save({"version": 1, "config": {"of": path.name}, "state_dict": weights, "epoch": 3}, path)
    return path


def test_mean(tmp_path, capsys):
    """Floating-point tensors in their type, integers rounded down; everything else of the first."""
    values = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    counts = torch.tensor([7, 8]), torch.tensor([1, 2]), torch.tensor([3, 4])
    pairs = enumerate(zip(values, counts))
    inputs = [write(tmp_path / f"{i}.pt", a=value, half=value.half(), n=count) for i, (value, count) in pairs]
    output = tmp_path / "new" / "mean.pt"
    average_checkpoints.main(["--inputs", *map(str, inputs), "--output", str(output)])
    mean = torch.load(output, weights_only=True)
    torch.testing.assert_close(mean["state_dict"]["a"], sum(values) / 3)
    torch.testing.assert_close(mean["state_dict"]["half"], (sum(v.half().double() for v in values) / 3).half())
    assert torch.equal(mean["state_dict"]["n"], torch.tensor([3, 4]))  # 11 / 3 and 14 / 3
    assert (mean["config"], mean["epoch"]) == ({"of": "0.pt"}, 3)
    assert capsys.readouterr().out == f"{output}: mean of 3 checkpoints\n"


def test_the_mean_of_one_is_itself(tmp_path):
    path = write(tmp_path / "one.pt", a=torch.randn(5))
    average_checkpoints.main(["--inputs", str(path), "--output", str(path)])
    assert tiny.checkpoint(tmp_path, "one.pt")["config"] == {"of": "one.pt"}


@pytest.mark.parametrize("number", [2, 7])
def test_equal_checkpoints_have_that_mean(tmp_path, number):
    weights = torch.randn(50)
    inputs = [str(write(tmp_path / f"{i}.pt", a=weights)) for i in range(number)]
    average_checkpoints.main(["--inputs", *inputs, "--output", str(tmp_path / "mean.pt")])
    assert torch.equal(tiny.checkpoint(tmp_path, "mean.pt")["state_dict"]["a"], weights)
