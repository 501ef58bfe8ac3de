"""Wrong usage: each message says what would be right, and nothing is replaced."""

import pytest
import torch
from torch import nn

from factorized import (
    FactorizedConv2d,
    FactorizedLinear,
    TensorTrainConv2d,
    factorize,
    factorized_modules,
    find_rank_scale,
    merge,
    summary,
)
from tests.factorized.networks import small_cnn

NAN = float("nan")

WRONG = {
    "a number without a name": (lambda m: factorize(m, 0.1), TypeError, r"write rank_scale=0\.1 .* or ratio=0\.1 "),
    "rank": (lambda m: factorize(m, rank=8), TypeError, r"no argument 'rank': ranks=\{'\*\*': 8\}"),
    "a misspelt argument": (lambda m: factorize(m, rank_scal=0.1), TypeError, "did you mean rank_scale"),
    "an unknown argument": (lambda m: factorize(m, zeal=1), TypeError, "it takes rank_scale, ratio, ranks"),
    "no model": (lambda m: factorize(rank_scale=0.1), TypeError, "missing a required argument: 'model'"),
    "an unknown split": (lambda m: factorize(m, rank_scale=0.1, split="channels"), ValueError, "mean 'channel'"),
    "a split and a class": (
        lambda m: factorize(m, rank_scale=0.1, split="channel", layer={nn.Conv2d: FactorizedConv2d}), ValueError,
        "give one of the two",
    ),
    "ranks as a number": (lambda m: factorize(m, ranks=8), TypeError, r"ranks=\{'\*\*': 8\}, not 8"),
    "ranks as a list": (lambda m: factorize(m, ranks=[8, 4]), TypeError, r"ranks=\{'layer1': 8"),
    "no ranks": (lambda m: factorize(m, ranks={}), ValueError, "ranks is empty"),
    "a float rank": (lambda m: factorize(m, ranks={"stem": 4.0}), TypeError, "'stem': rank must be an integer, not 4"),
    "a scale as a rank": (lambda m: factorize(m, ranks={"stem": 0.1}), TypeError, "rank_scale is a fraction"),
    "a bool rank": (lambda m: factorize(m, ranks={"stem": True}), TypeError, "'stem': rank must be an integer"),
    "a rank of 0": (lambda m: factorize(m, ranks={"stem": 0}), ValueError, "'stem': rank must be at least 1"),
    "a rank by class": (lambda m: factorize(m, ranks={nn.Linear: 8}), TypeError, "a name .*, not the class Linear"),
    "classes to exclude": (
        lambda m: factorize(m, rank_scale=0.1, exclude=[nn.Linear]), TypeError, "a name .*, not the class Linear",
    ),
    "modules to include": (
        lambda m: factorize(m, rank_scale=0.1, include=[m.stem]), TypeError, "a name such as .*, not a Conv2d",
    ),
    "a module to include": (
        lambda m: factorize(m, rank_scale=0.1, include=m.body), TypeError, r"a list of strings such as",
    ),
    "the name of a class": (
        lambda m: factorize(m, rank_scale=0.1, exclude=["nn.Linear"]), ValueError, "name of a module, not its class",
    ),
    "a regular expression": (
        lambda m: factorize(m, rank_scale=0.1, include=[r"body\..*"]), ValueError, r"regular expr.*mean 'body\.\*'",
    ),
    "an anchored expression": (
        lambda m: factorize(m, rank_scale=0.1, include=["^st"]), ValueError, r"regular expression.*mean 'st\*'",
    ),
    "an expression for nothing": (
        lambda m: factorize(m, rank_scale=0.1, include=["(tail|toe)$"]), ValueError, "'\\*\\*' for any number of them$",
    ),
    "a list in a string": (
        lambda m: factorize(m, rank_scale=0.1, include="stem, head"), ValueError, r"a list: \['stem', 'head'\]",
    ),
    "the last component": (
        lambda m: factorize(nn.Sequential(m), rank_scale=0.1, include=["stem"]), ValueError, r"'\*\*\.stem' would",
    ),
    "a mapping of patterns": (
        lambda m: factorize(m, rank_scale=0.1, include={"stem": 8}), TypeError, r"a list of strings such as",
    ),
    "a list of models": (lambda m: factorize([m, m], rank_scale=0.1), TypeError, "not a list; call it for each"),
    "a state dict": (lambda m: factorize(m.state_dict(), rank_scale=0.1), TypeError, "load it into a model"),
    "a class of models": (lambda m: factorize(nn.Linear, rank_scale=0.1), TypeError, "the class Linear; call it first"),
    "ratio in percent": (lambda m: factorize(m, ratio=10), ValueError, r"for 10 percent give ratio=0\.1"),
    "ratio of 1": (lambda m: factorize(m, ratio=1.0), ValueError, "below 1, not 1; rule='paper' also makes"),
    "ratio NaN": (lambda m: factorize(m, ratio=NAN), ValueError, "ratio must be a positive number, not nan"),
    "ratio as a string": (lambda m: factorize(m, ratio="0.1"), TypeError, "ratio must be a number, not '0.1'"),
    "scale as a rank": (lambda m: factorize(m, rank_scale=16), TypeError, r"ranks=\{'\*\*': 16\}, for a scale 16\.0"),
    "scale NaN": (lambda m: factorize(m, rank_scale=NAN), ValueError, "rank_scale must be a positive number, not nan"),
    "scale below 0": (lambda m: factorize(m, rank_scale=-0.5), ValueError, "rank_scale must be a positive number"),
    "scale as a bool": (lambda m: factorize(m, rank_scale=True), TypeError, "rank_scale must be a number, not True"),
    "scale as a string": (lambda m: factorize(m, rank_scale="0.1"), TypeError, "rank_scale must be a number"),
    "a misspelt start": (lambda m: factorize(m, rank_scale=0.1, init="kaming"), ValueError, "did you mean 'kaiming'"),
    "no start": (lambda m: factorize(m, rank_scale=0.1, init=None), TypeError, "init must be a word .* or a function"),
    "two starts": (
        lambda m: factorize(m, rank_scale=0.1, init="kaiming", spectral=True), ValueError, "contradict .*; give init",
    ),
    "a misspelt rule": (lambda m: factorize(m, rank_scale=0.1, rule="papers"), ValueError, "did you mean 'paper'"),
    "a misspelt path": (lambda m: factorize(m, rank_scale=0.1, path="two-step"), ValueError, "did you mean 'two_step'"),
    "half a square form": (
        lambda m: factorize(m, rank_scale=0.1, square_init=torch.neg), ValueError, "no effect without square=True",
    ),
    "an example for nothing": (
        lambda m: factorize(m, rank_scale=0.1, example_input=torch.ones(1, 3, 8, 8)), ValueError, "verbose=True",
    ),
    "an example that does not fit": (
        lambda m: factorize(m, rank_scale=0.1, verbose=True, example_input=torch.ones(1, 4, 8, 8)), RuntimeError, "4",
    ),
    "a dense layer to make": (
        lambda m: factorize(m, rank_scale=0.1, layer=nn.Linear), TypeError, "a class such as factorized",
    ),
    "a layer for another class": (
        lambda m: factorize(m, rank_scale=0.1, layer={nn.GRU: FactorizedConv2d}), TypeError, "one of nn.Linear",
    ),
    "layers swapped": (
        lambda m: factorize(m, rank_scale=0.1, layer={nn.Conv2d: FactorizedLinear}), TypeError, "stands for",
    ),
    "a rank for a tensor": (
        lambda m: factorize(m, ranks={"stem": 3}, layer=TensorTrainConv2d), ValueError, "stem becomes a TensorTrain",
    ),
    "a start for tensors": (
        lambda m: factorize(m, rank_scale=0.5, init="kaiming", layer=TensorTrainConv2d), ValueError, "no effect",
    ),
    "a ratio without a name is one": (lambda m: find_rank_scale(m, "a tenth"), TypeError, "ratio must be a number"),
    "what has no ratio": (lambda m: find_rank_scale(m, 0.5, ratios=3), TypeError, "no argument 'ratios'"),
    "a search for nothing": (lambda m: find_rank_scale(m), TypeError, r"'ratio'; write find_rank_scale\(model, ratio"),
    "the name of a model": (lambda m: factorize("resnet50", ratio=0.5), TypeError, "not 'resnet50'; build the model"),
    "parameters": (lambda m: factorize(m.parameters(), ratio=0.5), TypeError, r"as of model.parameters\(\); give"),
    "a scripted model": (
        lambda m: factorize(torch.jit.script(m), ratio=0.5), ValueError,
        "factorize it before torch.jit.script",
    ),
    "the name of a weight": (
        lambda m: factorize(m, ratio=0.5, exclude=["stem.weight"]), ValueError, "leave '.weight' out",
    ),
    "ranks of a weight": (lambda m: factorize(m, ranks={"stem.weight": 2}), ValueError, "leave '.weight' out"),
    "a class to start with": (lambda m: factorize(m, ratio=0.5, init=nn.Linear), TypeError, "a function that fills a"),
    "a shape for an example": (
        lambda m: factorize(m, ratio=0.7, cost="multiply-adds", example_input=(1, 3, 8, 8)), TypeError,
        r"not its shape \(1, 3, 8, 8\): give torch.zeros\(1, 3, 8, 8\)",
    ),
    "an array for an example": (
        lambda m: factorize(m, ratio=0.7, cost="multiply-adds", example_input=torch.ones(1, 3, 8, 8).numpy()),
        TypeError, "not an array: give torch.from_numpy",
    ),
    "a list to merge": (lambda m: merge([m]), TypeError, "not a list"),
    "a list to sum up": (lambda m: summary([m]), TypeError, "not a list"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.filterwarnings("ignore:spectral=True is deprecated", "ignore:.torch.jit.script")
def test_a_mistake_is_told_with_what_would_be_right(what):
    act, kind, words = WRONG[what]
    model = small_cnn()
    modules, state = list(model.modules()), {name: vars(module).keys() for name, module in model.named_modules()}
    with pytest.raises(kind, match=words) as caught:
        act(model)
    assert "\n" not in str(caught.value) or kind is RuntimeError
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert {name: vars(module).keys() for name, module in model.named_modules()} == state
    assert not factorized_modules(model)


def test_the_earlier_spelling_of_the_start_is_deprecated():
    for spectral, init in ((False, "kaiming"), (True, "spectral")):
        torch.manual_seed(0)
        model, other = small_cnn(), small_cnn()
        other.load_state_dict(model.state_dict())
        torch.manual_seed(1)
        with pytest.warns(DeprecationWarning, match=f"say init='{init}'") as caught:
            factorize(model, ranks={"head": 2}, spectral=spectral)
        assert caught[0].filename == __file__
        torch.manual_seed(1)
        factorize(other, ranks={"head": 2}, init=init)
        assert torch.equal(model.head.U, other.head.U) and torch.equal(model.head.VT, other.head.VT)
