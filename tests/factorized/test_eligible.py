"""Which weights can be factorized, and why the others stay dense."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from factorized import FactorizedLinear, factorize, factorized_modules, find_rank_scale, merge, parameter_count, report
from factorized.eligible import obstacles
from tests.factorized.networks import relative_error, small_cnn


class Scaled(nn.Linear):
    """A linear layer that uses its weight in its own way."""

    def forward(self, x):
        return super().forward(x) * 2


class Renamed(nn.Linear):
    """A linear layer that is one, with a start and an attribute of its own."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.role = "probe"

    def reset_parameters(self):
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


class Scoring(nn.Linear):
    """A linear layer that others may ask for more than its output."""

    def scores(self):
        return self.weight.norm(dim=1)


def leaves(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules() if not list(module.children())}


def test_layers_left_dense_and_why():
    tied = nn.Linear(8, 8)
    patched, masked = nn.Linear(8, 8), nn.Linear(8, 8)
    patched.forward = lambda x: x
    masked.register_buffer("mask", torch.ones(8))
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(8, 8),
            "renamed": Renamed(8, 8),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "reflecting": nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
            "lopsided": nn.Conv2d(8, 8, 2, padding="same"),
            "tied": tied,
            "embedding": nn.Embedding(8, 8),
            "subclass": Scaled(8, 8),
            "asked": Scoring(8, 8),
            "patched": patched,
            "masked": masked,
            "normed": weight_norm(nn.Linear(8, 8)),
            "complex": nn.Linear(8, 8, dtype=torch.complex64),
            "empty": nn.Linear(0, 8),
            "transposed": nn.ConvTranspose2d(8, 8, 3),
            "recurrent": nn.LSTM(8, 8),
            "attention": nn.MultiheadAttention(8, 2),
            "norm": nn.BatchNorm1d(8),
        }
    )
    model["embedding"].weight = tied.weight
    with pytest.warns(FutureWarning):
        model["hooked"] = nn.utils.weight_norm(nn.Linear(8, 8))
    reasons = obstacles(model, others=False)
    assert [reasons.pop(name) for name in ("plain", "renamed")] == [None, None]
    words = {
        "depthwise": "a depthwise one",
        "reflecting": "reflect",
        "lopsided": "not symmetric",
        "tied": "shared",
        "embedding": "shared",
        "subclass": "Scaled has a forward of its own",
        "asked": "Scoring adds scores to nn.Linear",
        "patched": "forward was replaced",
        "masked": "more than a weight and a bias: mask",
        "normed": "computed by a hook or parametrization",
        "hooked": "computed by a hook or parametrization",
        "complex": "complex64",
        "empty": "empty",
        "transposed": "nn.ConvTranspose2d has no factorized form",
        "recurrent.weight_ih_l0": "nn.LSTM has no factorized form",
        "recurrent.weight_hh_l0": "nn.LSTM has no factorized form",
        "attention.in_proj_weight": "input projection of nn.MultiheadAttention",
        "attention.out_proj": "output projection of nn.MultiheadAttention",
    }
    assert reasons.keys() == words.keys()
    assert {name for name in words if words[name] not in reasons[name]} == set()
    before = leaves(model)
    with pytest.warns(UserWarning, match="only 2 of 16 layers are factorized.* and 10 other reasons"):
        factorize(model, rank_scale=0.5, others=False)
    changed = {name for name in before if leaves(model).get(name) != before[name]}
    assert changed == {"plain", "renamed"} and model["embedding"].weight is model["tied"].weight


def test_a_subclass_that_only_renames_is_restored_by_merge():
    model = nn.Sequential(Renamed(6, 5))
    nn.init.normal_(model[0].weight)
    before = copy.deepcopy(model)
    factorize(model, rank_scale=1.0, rule="paper")
    assert type(model[0]) is FactorizedLinear and model[0].role == "probe"
    merged = merge(pickle.loads(pickle.dumps(copy.deepcopy(model))))
    assert type(merged[0]) is Renamed and merged[0].role == "probe"
    assert relative_error(merged[0].weight, before[0].weight) < 1e-5


def test_an_embedding_says_how_it_is_factorized():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8))
    assert "embeddings=True" in obstacles(model)["0"] and obstacles(model, embeddings=True)["0"] is None
    with pytest.raises(ValueError, match="embeddings=True factorizes it"):
        factorize(model, rank_scale=0.2, include=["0"])


@pytest.mark.parametrize(
    "model, words",
    [
        (nn.Sequential(nn.GRU(2, 2), nn.Bilinear(2, 2, 2)), "0.weight_hh_l0: nn.GRU has no factorized form; 1: nn.Bil"),
        (nn.MultiheadAttention(8, 2), "input projection of nn.MultiheadAttention; out_proj: output projection of"),
        (nn.Sequential(nn.ReLU()), "no linear layer"),
        (nn.Conv2d(4, 4, 3, groups=4), r"\(root\): a depthwise one: a grouped convolution"),
    ],
)
@pytest.mark.parametrize("size", [{"rank_scale": 0.2}, {"ratio": 0.5}])
def test_replacing_nothing_is_an_error_that_says_why(model, words, size):
    with pytest.raises(ValueError, match=words):
        factorize(model, **size, others=False)
    assert factorize(model, **size, others=False, strict=False) is model and not factorized_modules(model)


def test_an_empty_model_has_nothing_to_compress():
    model = nn.Sequential(nn.Linear(0, 4))
    with pytest.warns(UserWarning, match="its weight is empty") as caught:
        assert factorize(model, rank_scale=0.5)(torch.zeros(2, 0)).shape == (2, 4)
    assert caught[0].filename == __file__


def test_excluding_everything_is_an_error_too():
    with pytest.raises(ValueError, match="stem, body.0, body.2 and 2 more: excluded"):
        factorize(small_cnn(), rank_scale=0.2, exclude=["*"])
    with pytest.raises(ValueError, match="grouped convolution"):
        factorize(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4)), rank_scale=0.5, include=["0"])


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.LazyLinear(4)))


@pytest.mark.parametrize(
    "act",
    [
        lambda model: factorize(model, rank_scale=0.5),
        lambda model: factorize(model, ratio=0.5),
        lambda model: factorize(model, ranks={"0": 2}),
        lambda model: find_rank_scale(model, 0.5),
        report,
    ],
)
def test_a_lazy_layer_is_named_on_every_path(act):
    with pytest.raises(ValueError, match=r"1\.0 \(nn.LazyLinear\) has no weight yet: run one batch"):
        act(lazy())


def test_a_lazy_layer_is_a_linear_one_after_a_batch():
    model = lazy()
    model(torch.zeros(1, 8))
    factorize(model, ranks={"1.0": 2})
    assert list(factorized_modules(model)) == ["1.0"]


@pytest.mark.parametrize("size", [{"rank_scale": 0.4}, {"ratio": 0.7}, {"ranks": {"**": 2}}])
@pytest.mark.parametrize(
    "value, word", [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infinite")]
)
def test_weights_that_are_not_finite_are_refused_by_name(size, value, word):
    model = small_cnn()
    model.body[2].weight.data[0, 0, 0, 0] = value
    modules = list(model.modules())
    with pytest.raises(ValueError, match=rf"body.2 \(nn.Conv2d\): 1 of 324 weights are not finite \({word}\)"):
        factorize(model, **size)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    factorize(model, **size, exclude=["body.2"])


@pytest.mark.parametrize("size", [{"rank_scale": 0.4}, {"ratio": 0.7}, {"ranks": {"**": 2}}])
def test_the_meta_device_has_no_spectral_start(size):
    with torch.device("meta"):
        model = small_cnn()
    with pytest.raises(ValueError, match=r"stem \(nn.Conv2d\): its weight is on the meta device.*init='kaiming'"):
        factorize(model, **size)
    assert not factorized_modules(model) and "stem" in report(model)
    before = parameter_count(model)
    assert parameter_count(factorize(model, **size, init="kaiming")) < before


def sharded() -> nn.Module:
    """Return a model whose class has the name that PyTorch gives one whose parameters are sharded."""

    class FSDPModule:
        pass

    class FSDPSequential(FSDPModule, nn.Sequential):
        pass

    return FSDPSequential(nn.Linear(4, 4))


class Sharding(nn.Module):
    """Holds a module as the older sharding wrapper does."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, Sharding, lambda model: sharded()])
@pytest.mark.parametrize("inside", [False, True])
def test_wrapped_models_are_refused(wrap, inside):
    """The wrapper would go on with the parameters of the layers that were replaced."""
    model = wrap(nn.Sequential(nn.Linear(4, 4)))
    model = nn.Sequential(model) if inside else model
    for act in (lambda: factorize(model, rank_scale=0.5), lambda: find_rank_scale(model, 0.5)):
        with pytest.raises(ValueError, match="factorize a model before torch.compile.* wraps it"):
            act()


def test_activation_checkpoints_are_seen_through():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = small_cnn()
    model.body = checkpoint_wrapper(model.body)
    x = torch.randn(2, 3, 8, 8)
    factorize(model.eval(), rank_scale=0.9, rule="paper", include=["body.0"])
    assert list(factorized_modules(model)) == ["body.0"]
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(merge(model)(x), expected, rtol=1e-4, atol=1e-5)
