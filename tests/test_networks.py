"""Every network of every study starts from values that were chosen, trains, decays, and is saved and loaded whole."""

from pathlib import Path

import pytest
import torch
from deficient.convs import KINDS
from deficient.decay import parameter_groups
from torch import nn

import factorized
from lab import checkpoint
from tests.networks import CONVS, NETWORKS, outputs


@pytest.fixture
def memory_of_nan():
    """Fill memory that nobody has written to with NaN, and with the largest number where there is no NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def test_the_list_has_every_class_of_convolutions():
    assert CONVS.keys() == KINDS.keys()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("MobileNetV2")])
def test_biases_of_mobilenet_start_at_zero(name):
    biases = [value for key, value in NETWORKS[name]().state_dict().items() if key.endswith("bias")]
    assert biases and not any(bias.any() for bias in biases)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_starts_trains_decays_and_is_saved(memory_of_nan, name, tmp_path):
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # evaluated with the statistics of the one batch, as others overflow
    state = model.state_dict()
    unset = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    assert not unset
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1, ratio=0.5, frobenius=True), lr=0.01, momentum=0.9)
    if factorized.factorized_modules(model):
        factorized.FrobeniusDecay(model, 0.1).attach(optimizer)
    loss = sum(values.float().log_softmax(-1)[..., 0].mean() for values in outputs(name, model))
    loss.backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # batch norm of two small images alike has huge gradients
    optimizer.step()
    unmoved = [key for key, value in model.named_parameters() if torch.equal(value, before[key]) and value.any()]
    assert not unmoved
    assert all(value.isfinite().all() for value in model.parameters())

    checkpoint.save(tmp_path / "saved", {"state_dict": model.state_dict()})
    other = NETWORKS[name]()
    checkpoint.load_weights(other, checkpoint.load(tmp_path / "saved"), Path("saved"))
    with torch.no_grad():
        for mine, theirs in zip(outputs(name, model.eval()), outputs(name, other.eval())):
            assert torch.equal(mine, theirs) and mine.isfinite().all()


def test_a_factor_without_a_start_would_be_found(memory_of_nan):
    class Forgetful(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self.weight)

    assert Forgetful(2, 2).bias.isnan().all()
