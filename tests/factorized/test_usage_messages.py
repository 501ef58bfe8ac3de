"""Wrong usage of everything but `factorize`, whose own is in test_usage.py: each message says what would be right."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import factorized
from factorized import FrobeniusDecay, Moments, collect, deploy, factorize, recalibrate
from tests.factorized.networks import small_cnn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
INF = float("inf")


class Case:
    """What the wrong calls are given."""

    def __init__(self, folder: Path):
        torch.manual_seed(0)
        self.dense = small_cnn().eval()
        self.small = factorize(copy.deepcopy(self.dense), ratio=0.7)
        self.stats = collect(self.dense, [X])
        self.folder = folder
        self.sgd = torch.optim.SGD(self.small.parameters(), lr=0.1)

    def saved(self) -> Path:
        factorized.save(self.small, self.folder / "saved")
        return self.folder / "saved"


def shared_stats(case: Case) -> dict[str, Moments]:
    return {name: Moments(torch.eye(3)) for name in case.stats}


WRONG = {
    # statistics
    "one batch instead of a list": (lambda c: collect(c.dense, X), TypeError, "an iterable of inputs, or a function"),
    "no batch": (lambda c: collect(c.dense, []), ValueError, "batches is empty"),
    "a list of models": (lambda c: collect([c.dense], [X]), TypeError, "not a list; call it for each model"),
    "gradients of batches": (
        lambda c: collect(c.dense, [X], gradients=True), ValueError,
        "a function that calls backw",
    ),
    "gradients without backward": (
        lambda c: collect(c.dense, lambda: c.dense(X), gradients=True), ValueError, "must call backward.. on a loss",
    ),
    "another model run": (lambda c: collect(c.dense, lambda: c.small(X)), ValueError, "run the model that is given"),
    "sums in half precision": (
        lambda c: collect(c.dense, [X], dtype=torch.bfloat16), ValueError,
        "torch.float32 or torch.float64, not torch.bf",
    ),
    "data with NaN": (lambda c: collect(c.dense, [X * INF]), ValueError, "saw infinite numbers or NaN: mend the data"),
    "nothing to see": (lambda c: collect(nn.ReLU(), [X]), ValueError, "nn.ReLU has no weight to factorize"),
    "labels with the images": (
        lambda c: collect(c.dense, [(X, torch.zeros(2))]), TypeError, r"a list \[inputs, targets\] has its first run",
    ),
    "a factorized model": (lambda c: collect(factorize(c.dense[-1:], ranks={"head": 2}), [X]), ValueError, "before it"),
    "statistics of another model": (
        lambda c: factorize(nn.Sequential(nn.Linear(5, 5)), ranks={"0": 2}, stats=c.stats), ValueError,
        "stats are of another model: they hold stem, .* collect them from this model",
    ),
    "statistics of other sizes": (
        lambda c: factorize(c.dense, ratio=0.7, stats=shared_stats(c)), ValueError, "the shape .3, 3., and .* fits",
    ),
    "no batch norm": (lambda c: recalibrate(nn.Linear(3, 3), [X]), ValueError, "no batch norm with running statistics"),
    "batch norm in evaluation mode": (
        lambda c: recalibrate(c.dense, lambda: c.dense.eval()(X)), ValueError,
        "never reached batch norm in training mode",
    ),
    # deploying, saving, loading
    "deploying a dense model": (
        lambda c: deploy(c.dense, X), ValueError,
        "no factorized layers to deploy: factorize it",
    ),
    "deploying a list": (lambda c: deploy([c.small], X), TypeError, "not a list; call it for each model"),
    "saving a dense model": (
        lambda c: factorized.save(c.dense, c.folder / "new"), ValueError,
        "factorize it first, or save it by torch.save",
    ),
    "saving over something": (
        lambda c: factorized.save(c.small, c.folder), FileExistsError, "holds something else",
    ),
    "loading from nowhere": (
        lambda c: factorized.load(c.dense, c.folder / "none"), FileNotFoundError,
        "there is no folder",
    ),
    "loading a file": (
        lambda c: factorized.load(c.dense, c.folder / "file"), NotADirectoryError,
        "factorized.save makes",
    ),
    "loading another folder": (
        lambda c: factorized.load(c.dense, c.folder), ValueError, "not written by factorized.save",
    ),
    "loading into another model": (
        lambda c: factorized.load(nn.Linear(3, 3), c.saved()), ValueError, "it is another model",
    ),
    "a structure of words": (
        lambda c: factorized.restructure(c.dense, ["stem"]), ValueError, "what factorized.structure says of them",
    ),
    # decay
    "decay of nothing": (lambda c: FrobeniusDecay(c.dense, 1e-4), ValueError, "call factorized.factorize.model"),
    "a decay below zero": (lambda c: FrobeniusDecay(c.small, -1e-4), ValueError, "at least 0, not -0.0001"),
    "a decay in words": (lambda c: FrobeniusDecay(c.small, "1e-4"), TypeError, "a number such as 1e-4, not '1e-4'"),
    "decay of a class": (lambda c: FrobeniusDecay(nn.Linear, 1e-4), TypeError, "the model, a torch.nn.Module, not"),
    "decay of a layer that is not there": (
        lambda c: FrobeniusDecay(c.small, 1e-4, include=["tail"]), ValueError,
        "'tail' matches no layer; layers are called",
    ),
    "decay twice": (
        lambda c: (FrobeniusDecay(c.small, 1e-4).attach(c.sgd), FrobeniusDecay(c.small, 1e-4).attach(c.sgd)),
        ValueError, "call remove.. on the handle of the earlier decay",
    ),
    "decay of another model's optimizer": (
        lambda c: FrobeniusDecay(c.small, 1e-4).attach(torch.optim.SGD(c.dense.parameters(), lr=0.1)), ValueError,
        "make it of this model, after factorizing, with factorized.parameter_groups",
    ),
    "decay beside L2": (
        lambda c: FrobeniusDecay(c.small, 1e-4).attach(torch.optim.SGD(c.small.parameters(), lr=0.1, weight_decay=0.1)),
        ValueError, "parameter_groups",
    ),
    "decay without an optimizer": (lambda c: FrobeniusDecay(c.small, 1e-4).attach(c.small), TypeError, "optimizer"),
    "groups of a layer that is not there": (
        lambda c: factorized.parameter_groups(c.small, 1e-4, include=["tail"]), ValueError, "layers are called",
    ),
    "a budget of one rate": (lambda c: factorized.decay_budget(0.1, 1e-4), ValueError, r"for example \[0.1\] \* steps"),
    "a momentum of one": (lambda c: factorized.decay_budget([0.1], 1e-4, 1.0), ValueError, "below 1, not 1"),
    "a coefficient for no step": (lambda c: factorized.coefficient_for(1.0, []), ValueError, "or for no step at all"),
    # layers and matrices
    "the factors of an activation": (lambda c: factorized.matrix_of(nn.ReLU()), ValueError, "neither a linear layer"),
    "a linear layer for a convolution": (
        lambda c: factorized.FactorizedLinear.from_dense(c.dense.stem), ValueError, "it is not a torch.nn.Linear",
    ),
    "a rank as a fraction": (lambda c: factorized.FactorizedLinear(4, 4, 0.5), TypeError, "rank_scale is a fraction"),
    "two steps with groups": (
        lambda c: factorized.ChannelConv2d(4, 4, 3, 2, groups=2, path="two_step"), ValueError, "has no two-step path",
    ),
    "a weight of full rank": (
        lambda c: setattr(c.small.stem, "weight", torch.randn(6, 3, 3, 3)), ValueError,
        "factorize that anew with a higher",
    ),
    "a weight of another shape": (
        lambda c: setattr(c.small.stem, "weight", torch.randn(2, 2)), ValueError, r"shape \(6, 3, 3, 3\), not \(2, 2\)",
    ),
    "the start of a vector": (lambda c: factorized.spectral_init(torch.ones(3), 1), ValueError, "needs a matrix"),
    "factors that do not fit": (
        lambda c: factorized.batch_spectral_init(torch.ones(3, 2), torch.ones(3, 2)), ValueError,
        "do not form a product",
    ),
    "a scale search in percent": (
        lambda c: factorized.find_rank_scale(c.dense, 40, rule="compact"), ValueError, "for 40 percent give ratio=0.4",
    ),
    "an input that is too small": (lambda c: factorized.summary(c.small, X[:, :2]), RuntimeError, "channels"),
}  # fmt: skip


def test_there_are_forty():
    assert len(WRONG) >= 40


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_told_with_what_would_be_right(what, tmp_path):
    act, kind, words = WRONG[what]
    (tmp_path / "file").touch()
    case = Case(tmp_path)
    before = {name: copy.deepcopy(getattr(case, name).state_dict()) for name in ("dense", "small")}
    with pytest.raises(kind, match=words) as caught:
        act(case)
    assert kind is RuntimeError or "\n" not in str(caught.value)
    for name, state in before.items():
        now = getattr(case, name).state_dict()
        assert now.keys() == state.keys() and all(torch.equal(now[key], value) for key, value in state.items())
