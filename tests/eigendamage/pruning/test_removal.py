"""What is removed is really gone, and the output is that of the masked network."""

import copy
import random

import pytest
import torch
from eigendamage.pruning import removal
from eigendamage.pruning.counting import FilterCost, chosen, cost
from eigendamage.pruning.pruned import Pruned
from eigendamage.pruning.selection import Part
from torch import nn

import factorized
from tests.eigendamage.pruning import small


def some(units, share: float, seed: int):
    """Return a random choice of each layer's filters, another for every layer, one at least."""
    numbers = random.Random(seed)
    return {
        name: sorted(numbers.sample(list(kept), max(1, round(len(kept) * (1 - share))))) for name, kept in units.items()
    }


def assert_same(pruned, dense):
    x = small.images()
    expected = small.masked(dense, pruned.units, x)
    with torch.no_grad():
        found = pruned.model(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("network", small.NETWORKS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95, 0.98])
def test_output_is_that_of_the_masked_network(network, share):
    pruned = small.pruned(network)
    dense = copy.deepcopy(pruned.model)
    units = some(pruned.units, share, seed=1)
    removal.remove(pruned.model, pruned.flow, pruned.units, units)
    pruned.units = units
    assert_same(pruned, dense)
    assert factorized.parameter_count(pruned.model) < factorized.parameter_count(dense)


@pytest.mark.parametrize("network", small.NETWORKS)
def test_rounds_compose(network):
    """Every layer loses another set in every round; positions of one round mean other channels in the next."""
    pruned = small.pruned(network)
    dense = copy.deepcopy(pruned.model)
    for seed, share in enumerate((0.5, 0.4, 0.6, 0.7)):
        units = some(pruned.units, share, seed)
        removal.remove(pruned.model, pruned.flow, pruned.units, units)
        pruned.units = units
        assert_same(pruned, dense)


@pytest.mark.parametrize("network", small.NETWORKS)
def test_nothing_removed_changes_nothing(network):
    pruned = small.pruned(network)
    state = copy.deepcopy(pruned.model.state_dict())
    removal.remove(pruned.model, pruned.flow, pruned.units, pruned.units)
    new = pruned.model.state_dict()
    assert new.keys() == state.keys() and all(torch.equal(new[name], state[name]) for name in state)


@pytest.mark.parametrize("network", small.NETWORKS)
def test_every_layer_and_norm_is_in_the_flow(network):
    pruned = small.pruned(network)
    names = [step.name for step in pruned.flow if not hasattr(step, "branch")]
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    assert sorted(names) == sorted(n for n, m in pruned.model.named_modules() if isinstance(m, kinds))


@pytest.mark.parametrize("network", small.NETWORKS)
@pytest.mark.parametrize("kind", ["parameters", "multiply-adds"])
def test_costs_before_and_after_agree(network, kind):
    pruned = small.pruned(network)
    counting = FilterCost(pruned.model, pruned.flow, pruned.units, kind, (16, 16))
    for share in (0.3, 0.95):
        units = some(pruned.units, share, seed=7)
        positions = {Part(name): [pruned.units[name].index(n) for n in kept] for name, kept in units.items()}
        expected = counting(positions)
        assert chosen(pruned.units, positions) == units
        smaller = removal.remove(copy.deepcopy(pruned.model), pruned.flow, pruned.units, units)
        assert cost(smaller, (16, 16)).of(kind) == expected


@pytest.mark.parametrize("network", small.NETWORKS)
def test_the_result_is_built_again_from_its_description(network):
    import json

    pruned = small.pruned(network)
    units = some(pruned.units, 0.8, seed=2)
    removal.remove(pruned.model, pruned.flow, pruned.units, units)
    pruned.units = units
    twin = Pruned.rebuild(json.loads(json.dumps(pruned.describe())))
    twin.model.load_state_dict(pruned.model.state_dict())
    x = small.images()
    torch.testing.assert_close(twin.model.eval()(x), pruned.model(x), rtol=0, atol=0)


@pytest.mark.parametrize("network", small.NETWORKS)
def test_the_result_is_plain_modules(network):
    pruned = small.pruned(network)
    units = some(pruned.units, 0.9, seed=2)
    removal.remove(pruned.model, pruned.flow, pruned.units, units)
    x = small.images()
    exported = torch.export.export(pruned.model, (x,)).module()
    torch.testing.assert_close(exported(x), pruned.model(x), rtol=1e-4, atol=1e-4)
    assert factorized.merge(copy.deepcopy(pruned.model))(x).shape == (4, 3)
    pruned.model.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.model.parameters())


def test_hyper_parameters_carry_over():
    pruned = small.pruned("resnet")
    pruned.model.to(memory_format=torch.channels_last).train()
    removal.remove(pruned.model, pruned.flow, pruned.units, some(pruned.units, 0.5, seed=0))
    conv = pruned.model.layer2[0].conv1
    assert conv.stride == (2, 2) and conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.training and (conv.out_channels, conv.in_channels) == tuple(conv.weight.shape[:2])
    assert all(parameter.requires_grad for parameter in pruned.model.parameters())


@pytest.mark.parametrize("kept", [[], [0, 64]])
def test_what_cannot_be_kept_is_refused(kept):
    pruned = small.pruned("vgg")
    before = factorized.parameter_count(pruned.model)
    with pytest.raises(ValueError, match="feature.0 cannot keep"):
        removal.remove(pruned.model, pruned.flow, pruned.units, {**pruned.units, "feature.0": kept})
    assert factorized.parameter_count(pruned.model) == before
