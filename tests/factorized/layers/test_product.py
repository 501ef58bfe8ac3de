"""What both factorized layers share: construction from a dense layer, starting values, merging."""

import copy

import pytest
import torch
from torch import nn

from factorized import FactorizedConv2d, FactorizedLinear, FrobeniusDecay
from tests.factorized.networks import dense_and_factorized, example_input, relative_error

both_kinds = pytest.mark.parametrize("kind", ["linear", "conv"])
CLASSES = {"linear": FactorizedLinear, "conv": FactorizedConv2d}


@both_kinds
@pytest.mark.parametrize("init", ["spectral", "kaiming"])
def test_the_source_layer_is_left_intact(kind, init):
    """It stays usable, and shares no storage with the factorized layer."""
    dense, layer = dense_and_factorized(kind, init=init, rank=2)
    before = copy.deepcopy(dense.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    assert dense.state_dict().keys() == before.keys() == {"weight", "bias"}
    assert all(torch.equal(dense.state_dict()[name], before[name]) for name in before)


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_follows_the_source(kind, dtype):
    """Parameters are made in it, outputs have it, and merging gives it back."""
    dense, _ = dense_and_factorized(kind, rank=2)
    layer = CLASSES[kind].from_dense(dense.to(dtype), rank=2, square=True)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert layer(example_input(kind, dtype)).dtype == dtype
    assert layer.to_dense().weight.dtype == dtype


@both_kinds
def test_device_follows_the_source(kind):
    dense, _ = dense_and_factorized(kind, rank=2)
    layer = CLASSES[kind].from_dense(dense.to("meta"), rank=2, init="kaiming", square=True)
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert layer.to_dense().weight.device.type == "meta"


@both_kinds
def test_frozen_weight_and_frozen_bias_follow_the_source(kind):
    dense, _ = dense_and_factorized(kind, rank=2)
    for weight, bias in ((False, True), (True, False)):
        dense.weight.requires_grad_(weight)
        dense.bias.requires_grad_(bias)
        layer = CLASSES[kind].from_dense(dense, rank=2, square=True)
        assert [factor.requires_grad for factor in layer.factors()] == [weight] * 3
        assert layer.bias.requires_grad == bias
        merged = layer.to_dense()
        assert (merged.weight.requires_grad, merged.bias.requires_grad) == (weight, bias)


@both_kinds
def test_training_mode_follows_the_source(kind):
    dense, _ = dense_and_factorized(kind, rank=2)
    for mode in (True, False):
        layer = CLASSES[kind].from_dense(dense.train(mode), rank=2)
        assert layer.training == mode == layer.to_dense().training


@both_kinds
def test_state_dict_names(kind):
    """Checkpoints of the published code have these."""
    _, layer = dense_and_factorized(kind, rank=2)
    assert set(layer.state_dict()) == {"U", "VT", "bias"}
    _, layer = dense_and_factorized(kind, rank=2, square=True)
    assert set(layer.state_dict()) == {"U", "M", "VT", "bias"}
    assert [tuple(factor.shape) for factor in layer.factors()] == [layer.U.shape, (2, 2), layer.VT.shape]


@both_kinds
@pytest.mark.parametrize("rank_scale", [1e-9, 0.01])
def test_the_rank_is_at_least_one(kind, rank_scale):
    """With no rank at all the layer would be its bias."""
    _, layer = dense_and_factorized(kind, rank_scale=rank_scale)
    assert layer.rank == 1 and layer.weight.abs().sum() > 0


@both_kinds
@pytest.mark.parametrize(
    "options, words",
    [
        ({"init": "xavier"}, ["spectral", "kaiming", "xavier"]),
        ({"init": ""}, ["spectral", "kaiming"]),
        ({"path": "one_conv"}, ["auto", "composed", "two_step", "one_conv"]),
        ({"rank": 0}, ["rank", "0"]),
        ({"rank_scale": 0.0}, ["rank_scale"]),
        ({"rank_scale": -1.0}, ["rank_scale"]),
        ({"rank_scale": float("nan")}, ["rank_scale"]),
        ({"rank_scale": float("inf")}, ["rank_scale"]),
    ],
)
def test_wrong_options_name_the_right_ones(kind, options, words):
    with pytest.raises(ValueError) as caught:
        dense_and_factorized(kind, **options)
    assert all(word in str(caught.value) for word in words)


@both_kinds
def test_another_type_of_layer_is_refused(kind):
    with pytest.raises(ValueError, match="BatchNorm2d cannot be factorized"):
        CLASSES[kind].from_dense(nn.BatchNorm2d(3))


@both_kinds
def test_kaiming_word_is_kaiming_normal_on_each_factor(kind):
    """By fan-in, on `U` and then on `VT`."""
    dense, _ = dense_and_factorized(kind, rank=2)
    torch.manual_seed(1)
    layer = CLASSES[kind].from_dense(dense, rank=3, init="kaiming")
    torch.manual_seed(1)
    for factor in (layer.U, layer.VT):
        expected = torch.randn(factor.shape) * (2 / factor.shape[1]) ** 0.5
        torch.testing.assert_close(factor.detach(), expected)


@both_kinds
@pytest.mark.parametrize("init", ["fan_in", "fan_out"])
def test_fan_words_take_the_variance_of_the_dense_weight(kind, init):
    dense, _ = dense_and_factorized(kind, rank=2)
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(dense.weight)
    torch.manual_seed(1)
    layer = CLASSES[kind].from_dense(dense, rank=3, init=init)
    torch.manual_seed(1)
    for factor in (layer.U, layer.VT):
        expected = torch.randn(factor.shape) * (2 / {"fan_in": fan_in, "fan_out": fan_out}[init]) ** 0.5
        torch.testing.assert_close(factor.detach(), expected)


@both_kinds
def test_a_fill_function_gets_each_factor_in_turn(kind):
    filled = []
    _, layer = dense_and_factorized(kind, rank=3, init=lambda f: filled.append(f.shape) or f.fill_(len(filled)))
    assert filled == [layer.U.shape, layer.VT.shape]
    assert (layer.U == 1).all() and (layer.VT == 2).all()


@both_kinds
def test_spectral_start_draws_no_random_numbers(kind):
    dense, _ = dense_and_factorized(kind, rank=2)
    state = torch.get_rng_state()
    CLASSES[kind].from_dense(dense, rank=2, square=True).to_dense()
    assert torch.equal(torch.get_rng_state(), state)


@both_kinds
@pytest.mark.parametrize("init", ["spectral", "kaiming"])
def test_square_layer_starts_as_the_two_factor_layer(kind, init):
    """`M` starts at the identity unless `square_init` turns that into something else."""
    dense, _ = dense_and_factorized(kind, rank=2)
    x = example_input(kind)
    two, square, noisy = [
        (torch.manual_seed(3), CLASSES[kind].from_dense(dense, rank=3, init=init, **options))[1]
        for options in ({}, {"square": True}, {"square": True, "square_init": lambda eye: eye + 0.5})
    ]
    assert torch.equal(square.M, torch.eye(3)) and torch.equal(noisy.M, torch.eye(3) + 0.5)
    torch.testing.assert_close(square(x), two(x))
    assert torch.equal(noisy.U, two.U) and relative_error(noisy(x), two(x)) > 1e-2


@both_kinds
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_merging_preserves_the_output(kind, square, path):
    """To 1e-10, with factors that are far from their starting values."""
    dense, layer = dense_and_factorized(kind, rank=3, square=square, path=path)
    layer = layer.double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    merged, x = layer.to_dense(), example_input(kind, torch.float64)
    assert type(merged) is type(dense) and merged.weight.shape == dense.weight.shape
    torch.testing.assert_close(merged(x), layer(x), rtol=0, atol=1e-10)


@both_kinds
def test_changes_of_the_merged_layer_do_not_reach_the_factorized_one(kind):
    _, layer = dense_and_factorized(kind, rank=2)
    merged, before = layer.to_dense(), copy.deepcopy(layer.state_dict())
    nn.init.zeros_(merged.weight)
    nn.init.zeros_(merged.bias)
    assert all(torch.equal(layer.state_dict()[name], before[name]) for name in before)


def train(layer, kind, steps=5):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    FrobeniusDecay(layer, 0.1).attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(example_input(kind)).square().mean().backward()
        optimizer.step()


@both_kinds
@pytest.mark.parametrize("path", ["composed", "two_step"])
@pytest.mark.parametrize("square", [False, True])
def test_zero_padded_directions_stay_zero_in_training(kind, path, square):
    """With a warning, in the two-factor layer and with `M` at the identity."""
    with pytest.warns(UserWarning, match=r"zero directions.*\(rank 12, at most \d+ useful\)") as caught:
        dense, layer = dense_and_factorized(kind, rank=12, path=path, square=square)
    assert "networks.py" in caught[0].filename
    assert relative_error(layer(x := example_input(kind)), dense(x)) < 1e-5
    useful = min(layer.U.shape[0], layer.VT.shape[1])
    start = layer.U.detach().clone()
    train(layer, kind)
    assert not torch.equal(layer.U, start)
    assert layer.U[:, useful:].count_nonzero() == 0 and layer.VT[useful:].count_nonzero() == 0


@both_kinds
@pytest.mark.filterwarnings("ignore:spectral initialization pads")
def test_noise_in_the_middle_factor_wakes_padded_directions(kind):
    """A middle factor that is not diagonal gives them a gradient."""
    dense, layer = dense_and_factorized(kind, rank=12, square=True, square_init=lambda eye: eye + 0.1)
    useful = min(layer.U.shape[0], layer.VT.shape[1])
    train(layer, kind)
    assert (layer.U[:, useful:] != 0).any(0).all() and (layer.VT[useful:] != 0).any(1).all()


@both_kinds
def test_no_warning_without_padding(kind, recwarn):
    dense, _ = dense_and_factorized(kind, rank=2)
    CLASSES[kind].from_dense(dense, rank=min(CLASSES[kind].matrix_shape(dense)))
    CLASSES[kind].from_dense(dense, rank=12, init="kaiming")
    assert not recwarn.list


@both_kinds
def test_weight_under_autocast_keeps_the_precision_of_the_factors(kind):
    _, layer = dense_and_factorized(kind, rank=2)
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.weight
        assert layer(example_input(kind)).dtype == torch.bfloat16
    assert torch.equal(found, expected)
