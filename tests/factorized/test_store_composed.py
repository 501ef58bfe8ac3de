"""Composed weights in folders and back, and what is wrong with structures that hold them."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from factorized import factorize, load, restructure, save, structure
from tests.factorized.composing import Everything, tokens
from tests.harness import REPOSITORY, environment

pytestmark = pytest.mark.filterwarnings("ignore:layers become larger")


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.5, "embeddings": True}, {"rank_scale": 0.4, "square": True}, {"rank_scale": 0.4, "init": "kaiming"}],
)
def test_round_trip(options, tmp_path):
    model, x = factorize(Everything().eval(), **options), tokens()
    expected = model(x)
    save(model, tmp_path / "saved")
    assert torch.equal(load(Everything().eval(), tmp_path / "saved")(x), expected)
    with torch.device("meta"):
        empty = Everything().eval()
    assert torch.equal(load(empty, tmp_path / "saved")(x), expected)
    plain = load(Everything().eval(), tmp_path / "saved", merge=True)
    assert torch.equal(plain(x), expected) and type(plain.recurrent) is nn.LSTM
    built_factorized = factorize(Everything().eval(), **{**options, "init": "kaiming"})
    assert torch.equal(load(built_factorized, tmp_path / "saved")(x), expected)
    halves = restructure(Everything().eval(), json.loads(json.dumps(structure(model))))
    halves.load_state_dict(model.state_dict())
    assert torch.equal(halves(x), expected)


def test_loaded_tensors_are_aligned_as_all_others(tmp_path):
    """Kernels take other ways for memory that is not, whose roundings differ in the last bits."""
    model = factorize(nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 33, 3), nn.Linear(5, 3)), ranks={"0": 2, "1": 3})
    save(model, tmp_path / "saved")
    fresh = load(nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 33, 3), nn.Linear(5, 3)), tmp_path / "saved")
    assert all(parameter.data_ptr() % 64 == 0 for parameter in fresh.parameters())


@pytest.mark.slow
def test_the_outputs_are_the_same_in_a_new_process(tmp_path):
    model, x = factorize(Everything().eval(), ratio=0.5, embeddings=True), tokens()
    save(model, tmp_path / "saved")
    torch.save((x, model(x).detach()), tmp_path / "expected.pt")
    code = (
        "import sys, torch, factorized; from tests.factorized.composing import Everything; torch.set_num_threads(1)\n"
        "x, expected = torch.load(sys.argv[2], weights_only=True)\n"
        "sys.exit(not torch.equal(factorized.load(Everything().eval(), sys.argv[1])(x), expected))"
    )
    command = [sys.executable, "-c", code, tmp_path / "saved", tmp_path / "expected.pt"]
    assert subprocess.run(command, cwd=REPOSITORY, env=environment(), timeout=120).returncode == 0


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("attention.in_proj_weight", {"products": 5}, "does not hold 5 matrices of 16 rows"),
        ("attention.in_proj_weight", {"products": 0}, "the structure is damaged"),
        ("attention.in_proj_weight", {"rows": "x"}, "the structure is damaged"),
        ("attention.in_proj_weight", {"shape": [4, 4]}, r"shape is \[48, 16\] here and \[4, 4\] there"),
        ("attention.in_proj_weight", {"rank": 0}, "rank must be at least 1"),
        ("attention.in_proj_weight", {"places": ["attention.nothing"]}, "has no attention.in_proj_weight"),
        ("attention.in_proj_weight", {"places": []}, "has no attention.in_proj_weight"),
        ("attention.in_proj_weight", {"places": 3}, "has no attention.in_proj_weight"),
        ("attention.in_proj_weight", {"class": "FactorizedLinear"}, "only a ComposedWeight has places"),
        ("embedding", {"places": ["embedding.weight", "scaled.weight"]}, "has no embedding"),
        ("embedding", {"places": ["embedding.weight"]}, "has no embedding"),
    ],
)
def test_a_structure_that_does_not_fit_is_an_error_and_changes_nothing(name, change, message):
    found = copy.deepcopy(structure(factorize(Everything(), rank_scale=0.4, embeddings=True)))
    found[name].update(change)
    model = Everything()
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        restructure(model, found)
    assert [type(module) for module in model.modules()] == before
