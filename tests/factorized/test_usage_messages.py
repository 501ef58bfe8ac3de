"""Wrong usage of everything but `factorize`, whose own is in test_usage.py: each message says what would be right."""

import copy
import json
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
        self.recurrent = nn.GRU(8, 8)
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
    "a function of the batch": (
        lambda c: collect(c.dense, lambda x: c.dense(x)), TypeError,
        "takes no arguments and runs the model itself, as lambda: .model.x. for x in data.; this one needs x",
    ),
    "a function of a batch for batch norm": (
        lambda c: recalibrate(c.dense, lambda x, y=1, *more, **named: c.dense(x)), TypeError,
        "this one needs x$",
    ),
    "no batch": (lambda c: collect(c.dense, []), ValueError, "batches is empty"),
    "a list of models": (lambda c: collect([c.dense], [X]), TypeError, "not a list; call it for each model"),
    "gradients of batches": (
        lambda c: collect(c.dense, [X], gradients=True), ValueError,
        "a function that calls backw",
    ),
    "gradients without backward": (
        lambda c: collect(c.dense, lambda: c.dense(X), gradients=True), ValueError, "must call backward.. on a loss",
    ),
    "gradients inside of recurrent layers": (
        lambda c: collect(c.recurrent, lambda: c.recurrent(X[0])[0].sum().backward(), gradients=True), ValueError,
        "not known inside of recurrent layers, and nn.GRU applied no other weight: collect without gradients=True",
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
        lambda c: factorized.restructure(c.dense, ["stem"]), ValueError, "structure.model. says of them, not a list",
    ),
    "a shape to deploy for": (lambda c: deploy(c.small, X.shape), TypeError, r"give torch.zeros\(2, 3, 8, 8\)"),
    "nothing to deploy for": (lambda c: deploy(c.small), TypeError, r"write deploy\(model, example_input, ...\)"),
    "None to deploy for": (lambda c: deploy(c.small, None), TypeError, "such as a tensor, not None"),
    "a loader to deploy for": (
        lambda c: deploy(c.small, torch.utils.data.DataLoader(X)), TypeError, r"give one batch, next\(iter\(loader\)\)",
    ),
    "saving nowhere": (lambda c: factorized.save(c.small), TypeError, r"write save\(model, folder, ...\)"),
    "saving to a number": (lambda c: factorized.save(c.small, 3), TypeError, "folder must be a path such as 'saved'"),
    "saving swapped": (lambda c: factorized.save(c.folder, c.small), TypeError, "build the model first, and give that"),
    "loading a folder alone": (lambda c: factorized.load(c.saved()), TypeError, r"write load\(dense_model, folder, "),
    "loading from None": (lambda c: factorized.load(c.dense, None), TypeError, "such as 'saved', not None"),
    "a device in the place of merge": (
        lambda c: factorized.load(c.dense, c.saved(), "cpu"), TypeError, "True or False, not 'cpu'; device='cpu' says",
    ),
    "a device that is not there": (
        lambda c: factorized.load(c.dense, c.saved(), device="gpu"), RuntimeError, "Expected one of cpu, cuda",
    ),
    "loading what is loaded with another rank": (
        lambda c: factorized.load(factorize(copy.deepcopy(c.dense), ranks={"stem": 1}), c.saved()), ValueError,
        "stem .FactorizedConv2d. does not fit the structure: rank is 1 here and",
    ),
    "the structure of a folder": (
        lambda c: factorized.restructure(c.dense, str(c.saved())), ValueError, "factorized.load reads the one of",
    ),
    "a model as structure": (
        lambda c: factorized.restructure(c.dense, c.small), ValueError, "not a Sequential; factorized.load reads",
    ),
    "all of a folder's description": (
        lambda c: factorized.restructure(c.dense, json.loads((c.saved() / "factorized.json").read_text())), ValueError,
        "a mapping of layer names to what factorized.structure.model. says of them",
    ),
    "counting a list": (lambda c: factorized.parameter_count([c.dense]), TypeError, "not a list; call it for each"),
    "the layers of a list": (lambda c: factorized.factorized_modules([c.small]), TypeError, "not a list; call it for"),
    # decay
    "decay without a coefficient": (
        lambda c: FrobeniusDecay(c.small), TypeError, r"write FrobeniusDecay\(model, coefficient, ...\)",
    ),
    "decay of parameters": (lambda c: FrobeniusDecay(c.small.parameters(), 1e-4), TypeError, "not a generator: Frob"),
    "decay by another name": (
        lambda c: FrobeniusDecay(c.small, weight_decay=1e-4), TypeError, "of Frobenius decay is its coefficient",
    ),
    "decay made with an optimizer": (
        lambda c: FrobeniusDecay(c.small, 1e-4, c.sgd), TypeError, "a SGD has none: it takes include, exclude",
    ),
    "decay with an optimizer": (
        lambda c: FrobeniusDecay(c.small, 1e-4, optimizer=c.sgd), TypeError, r"attach\(optimizer\) lets an optimizer",
    ),
    "decay of NaN": (lambda c: FrobeniusDecay(c.small, INF - INF), ValueError, "at least 0, not nan"),
    "another coefficient afterwards": (
        lambda c: setattr(FrobeniusDecay(c.small, 1e-4), "coefficient", 1e-3), AttributeError,
        r"remove\(\) what attach returned, and attach a decay of another",
    ),
    "groups without a decay": (
        lambda c: factorized.parameter_groups(c.small), TypeError, r"write parameter_groups\(model, weight_decay, ",
    ),
    "groups of a decay in words": (
        lambda c: factorized.parameter_groups(c.small, "1e-4"), TypeError, "weight_decay must be a number such as 1e-4",
    ),
    "groups of a negative decay": (
        lambda c: factorized.parameter_groups(c.small, -1.0), ValueError, "at least 0, not -1.0",
    ),
    "groups of parameters": (
        lambda c: factorized.parameter_groups(c.small.parameters(), 1e-4), TypeError, "; give the model",
    ),
    "a budget of a scheduler": (
        lambda c: factorized.decay_budget(torch.optim.lr_scheduler.StepLR(c.sgd, 1), 1e-4), ValueError,
        r"\[0.1\] \* steps; it is a StepLR",
    ),
    "a budget of None": (lambda c: factorized.decay_budget(None, 1e-4), ValueError, "it is None"),
    "a budget of several coefficients": (
        lambda c: factorized.decay_budget([0.1], [1e-4]), ValueError, "coefficient must be .* not a list",
    ),
    "the betas of Adam as momentum": (
        lambda c: factorized.decay_budget([0.1], 1e-4, (0.9, 0.999)), ValueError, "momentum must be .* not a tuple",
    ),
    "a coefficient of swapped arguments": (
        lambda c: factorized.coefficient_for([0.1], 1.0), ValueError, "budget must be a finite number, .* not a list",
    ),
    "gradients of one matrix": (lambda c: factorized.frobgrad(torch.eye(3)), TypeError, "those of layer.factors()"),
    "the norm of a layer": (lambda c: factorized.frobenius_norm(c.small.stem), TypeError, "those of layer.factors()"),
    "the balance of a model": (lambda c: factorized.imbalance(c.small), TypeError, "those of layer.factors()"),
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
    "a depthwise convolution": (
        lambda c: factorized.FactorizedConv2d.from_dense(nn.Conv2d(4, 4, 3, groups=4)), ValueError, "one channel each",
    ),
    "a weight of full rank": (
        lambda c: setattr(c.small.stem, "weight", torch.randn(6, 3, 3, 3)), ValueError,
        "factorize that anew with a higher",
    ),
    "a weight of another shape": (
        lambda c: setattr(c.small.stem, "weight", torch.randn(2, 2)), ValueError, r"shape \(6, 3, 3, 3\), not \(2, 2\)",
    ),
    "the start of an array": (
        lambda c: factorized.spectral_init(torch.eye(3).numpy(), 1), TypeError, "such as layer.weight, not a ndarray",
    ),
    "the start of integers": (
        lambda c: factorized.spectral_init(torch.ones(3, 3, dtype=torch.long), 1), TypeError, "floating-point numbers",
    ),
    "the start of a fraction": (
        lambda c: factorized.spectral_init(torch.eye(3), 0.5), TypeError, "rank_scale is a fraction",
    ),
    "the start of a vector": (lambda c: factorized.spectral_init(torch.ones(3), 1), ValueError, "needs a matrix"),
    "factors that do not fit": (
        lambda c: factorized.batch_spectral_init(torch.ones(3, 2), torch.ones(3, 2)), ValueError,
        "do not form a product",
    ),
    "arrays to see": (lambda c: collect(c.dense, [X.numpy()]), TypeError, "not an array: give torch.from_numpy"),
    "a summary for a shape": (lambda c: factorized.summary(c.small, (2, 3, 8, 8)), TypeError, "give torch.zeros"),
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
