"""Frobenius decay inside a training step: optimizers, scaling, accumulation, compilation, wrappers."""

import copy

import pytest
import torch
from torch import nn

from factorized import FactorizedLinear, FrobeniusDecay, factorize, factorized_modules, frobgrad, parameter_groups
from tests.factorized.networks import relative_error, small_cnn

COEFFICIENT = 0.3


def model_and_input(path: str = "auto", square: bool = False, dtype=torch.float64):
    model = factorize(small_cnn(), rank_scale=0.3, square=square, path=path).to(dtype)
    return model, torch.randn(4, 3, 8, 8, dtype=dtype)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).float().square().sum() if x.dtype != torch.float64 else model(x).square().sum()


def penalty(model: nn.Module) -> torch.Tensor:
    return COEFFICIENT / 2 * sum(layer.weight().square().sum() for layer in factorized_modules(model).values())


def assert_same_parameters(model: nn.Module, other: nn.Module, **tolerance):
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_equals_automatic_differentiation_of_the_penalty(square, momentum):
    """The decay goes through momentum as the gradient of any other term of the loss does (5.2)."""
    model, x = model_and_input(square=square)
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
    reference = torch.optim.SGD(other.parameters(), lr=0.01, momentum=momentum)
    FrobeniusDecay(model, COEFFICIENT).attach(optimizer)
    start = copy.deepcopy(model)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        reference.zero_grad()
        (loss_of(other, x) + penalty(other)).backward()
        reference.step()
    assert relative_error(model.head.U, start.head.U) > 1e-2
    assert_same_parameters(model, other, rtol=1e-10, atol=1e-10)


def test_one_step_by_hand():
    layer = FactorizedLinear(4, 3, 2, dtype=torch.float64)
    U, VT = layer.U.detach().clone(), layer.VT.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    handle = FrobeniusDecay(layer, 0.1).attach(optimizer)
    optimizer.step()
    torch.testing.assert_close(layer.U.detach(), U - 0.5 * 0.1 * U @ VT @ VT.mT)
    torch.testing.assert_close(layer.VT.detach(), VT - 0.5 * 0.1 * U.mT @ U @ VT)
    handle.remove()
    optimizer.zero_grad()
    U = layer.U.detach().clone()
    optimizer.step()
    assert torch.equal(layer.U, U)


def test_gradient_accumulation_decays_once_per_step():
    model, x = model_and_input()
    other = copy.deepcopy(model).eval()
    model.eval()  # batch statistics of the parts are not those of the whole
    for network, parts in ((model, x.split(1)), (other, [x])):
        optimizer = torch.optim.SGD(parameter_groups(network, 0.1), lr=0.01)
        FrobeniusDecay(network, COEFFICIENT).attach(optimizer)
        for part in parts:
            loss_of(network, part).backward()
        optimizer.step()
    assert_same_parameters(model, other, rtol=1e-10, atol=1e-10)


OPTIMIZERS = {
    "SGD": lambda groups, fused: torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=fused),
    "Adam": lambda groups, fused: torch.optim.Adam(groups, lr=0.01, eps=1e-3, fused=fused),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("unscale_first", [False, True])
def test_gradient_scaling_does_not_change_the_decay(name, fused, unscale_first):
    """Section 9: a fused optimizer unscales inside its step, after the decay was added."""
    model, x = model_and_input(dtype=torch.float32)
    other = copy.deepcopy(model)
    for network, scale in ((model, 1024.0), (other, 1.0)):
        optimizer = OPTIMIZERS[name](parameter_groups(network, 0.1), fused)
        FrobeniusDecay(network, COEFFICIENT).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(loss_of(network, x)).backward()
            if unscale_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert_same_parameters(model, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_the_step_with_its_decay(fused):
    model, x = model_and_input(dtype=torch.float32)
    optimizer = OPTIMIZERS["SGD"](model.parameters(), fused)
    FrobeniusDecay(model, COEFFICIENT).attach(optimizer)
    scaler, before = torch.amp.GradScaler("cpu", init_scale=1024.0), copy.deepcopy(model)
    scaler.scale(loss_of(model, x) * float("inf")).backward()
    scaler.step(optimizer)
    assert_same_parameters(model, before, rtol=0, atol=0)


def test_clipping_after_adding_includes_the_decay():
    """The order of 5.2 for programs that rescale and clip."""
    model, x = model_and_input()
    loss_of(model, x).backward()
    FrobeniusDecay(model, COEFFICIENT).add_gradients()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert nn.utils.clip_grad_norm_(model.parameters(), 1.0) == pytest.approx(expected.item())


def gradients(model, x, decay=None, call=None):
    model.zero_grad()
    loss_of(call or model, x).backward()
    if decay:
        decay.add_gradients()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("path", ["composed", "two_step", "auto"])
def test_in_backward_equals_the_batched_route(path, square):
    """Layers on the two-step path, which never see their product, are left to the batched operation."""
    model, x = model_and_input(path, square)
    model.body[2].path = "two_step"
    plain = gradients(model, x)
    batched = gradients(model, x, FrobeniusDecay(model, COEFFICIENT))
    decay = FrobeniusDecay(model, COEFFICIENT, in_backward=True)
    fused = gradients(model, x, decay)
    if path != "auto":
        assert model.body[0].decayed_in_backward == (path == "composed")
    assert not model.body[2].decayed_in_backward
    assert max(relative_error(a, b) for a, b in zip(plain, batched)) > 1e-2
    for ours, theirs in zip(fused, batched):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_an_evaluation_between_backward_and_step_changes_nothing():
    """Also where its batch is of a size for which layers take the other path."""
    model, x = model_and_input("composed")
    expected = gradients(model, x, FrobeniusDecay(model, COEFFICIENT))
    decay = FrobeniusDecay(model, COEFFICIENT, in_backward=True)
    gradients(model, x)
    with torch.no_grad():
        for layer in decay.modules.values():
            layer.path = "two_step"
        model.eval()(x)
    decay.add_gradients()
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-10)


def test_a_later_decay_takes_over_from_one_in_backward():
    model, x = model_and_input("composed")
    expected = gradients(model, x, FrobeniusDecay(model, COEFFICIENT))
    FrobeniusDecay(model, COEFFICIENT, in_backward=True)
    found = gradients(model, x, FrobeniusDecay(model, COEFFICIENT))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("in_backward", [False, True])
def test_autocast_adds_the_decay_in_single_precision(in_backward):
    """A loss whose gradient is zero leaves the decay alone, with the digits of float32."""
    model, x = model_and_input("composed", dtype=torch.float32)
    decay = FrobeniusDecay(model, COEFFICIENT, in_backward=in_backward)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        assert output.dtype == torch.bfloat16
    (0 * output).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):  # programs that take the whole step in one block
        decay.add_gradients()
        assert decay.penalty().item() == pytest.approx(penalty(model).item(), rel=1e-5)
    for layer in factorized_modules(model).values():
        for factor, gradient in zip(layer.factors(), frobgrad(layer.factors())):
            assert relative_error(factor.grad, COEFFICIENT * gradient) < 1e-5


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_compiled_gradients_equal_eager_ones(model, x, backend):
    expected = gradients(model, x, FrobeniusDecay(model, COEFFICIENT))
    decay = FrobeniusDecay(model, COEFFICIENT, in_backward=True)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(2):
        found = gradients(model, x, decay, compiled)
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_in_backward_in_a_captured_graph(path, fresh_compiler):
    """Without graph breaks, and the layer still tells who is to add its decay."""
    model, x = model_and_input(path)
    assert_compiled_gradients_equal_eager_ones(model, x, "aot_eager")
    assert model.stem.decayed_in_backward == (path == "composed")


def test_in_backward_in_a_generated_program(fresh_compiler):
    """The same with the default compiler, on one layer, because it takes seconds for each."""
    model = factorize(nn.Sequential(nn.Conv2d(3, 4, 3)), rank_scale=0.3, path="composed").double()
    assert_compiled_gradients_equal_eager_ones(model, torch.randn(2, 3, 6, 6, dtype=torch.float64), "inductor")


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_optimizer_that_decays_a_factor_itself_is_refused(name):
    """Section 10: every factor gets exactly one kind of decay."""
    model, _ = model_and_input()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, weight_decay=1e-4)
    with pytest.raises(ValueError, match="stem.*both Frobenius and L2.*parameter_groups"):
        FrobeniusDecay(model, 1e-4).attach(optimizer)
    optimizer = getattr(torch.optim, name)(parameter_groups(model, 1e-4, exclude=["head"]), lr=0.1)
    with pytest.raises(ValueError, match="^head would"):
        FrobeniusDecay(model, 1e-4).attach(optimizer)
    FrobeniusDecay(model, 1e-4, exclude=["head"]).attach(optimizer)


def test_a_closure_is_refused():
    """A closure computes its gradients after the decay was added, and would silently drop it."""
    model, x = model_and_input()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    FrobeniusDecay(model, COEFFICIENT).attach(optimizer)
    for step in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(ValueError, match="closure"):
            step()
    optimizer.step(None)


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_names_and_steps_under_distributed_data_parallel(process_group):
    """Patterns do not see the wrapper's prefix, and a step equals that of the bare model."""
    model, x = model_and_input()
    other = copy.deepcopy(model)
    for network in (nn.parallel.DistributedDataParallel(model), other):
        decay = FrobeniusDecay(network, COEFFICIENT, include=["stem", "body.*"])
        assert list(decay.modules) == ["stem", "body.0", "body.2"]
        optimizer = torch.optim.SGD(parameter_groups(network, 0.1, include=["stem", "body"]), lr=0.01)
        decay.attach(optimizer)
        loss_of(network, x).backward()
        optimizer.step()
    assert_same_parameters(model, other, rtol=1e-10, atol=1e-10)
