"""Frobenius decay inside a training step: optimizers, scaling, accumulation, compilation, wrappers."""

import copy
import warnings

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
    return COEFFICIENT / 2 * sum(layer.weight.square().sum() for layer in factorized_modules(model).values())


def assert_same_parameters(model: nn.Module, other: nn.Module, **tolerance):
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_equals_automatic_differentiation_of_the_penalty(square, momentum):
    """The decay goes through momentum as the gradient of any other term of the loss does."""
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
    """A fused optimizer unscales inside its step, after the decay was added."""
    model, x = model_and_input(dtype=torch.float32)
    other = copy.deepcopy(model)
    for network, scale in ((model, 1024.0), (other, 1.0)):
        optimizer = OPTIMIZERS[name](parameter_groups(network, 0.1), fused)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Adam, which is meant here
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


def gradients(model, x, step=None, call=None):
    """The gradients of the loss; with a `step`, those that an optimizer that does nothing else gets to see."""
    model.zero_grad()
    loss_of(call or model, x).backward()
    if step:
        step()
    return [parameter.grad.clone() for parameter in model.parameters()]


def attached_step(model, **options):
    """The step of an optimizer that leaves parameters as they are, with a decay attached, and the decay's handle."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = FrobeniusDecay(model, COEFFICIENT).attach(optimizer, **options)
    return optimizer.step, handle


def backward_adds(layer: nn.Module) -> bool:
    """Whether the backward pass has added a layer's decay, and no step has been made since."""
    return layer.kernel_decay.mark.grad is not None


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("path", ["composed", "two_step", "auto"])
def test_in_backward_equals_the_batched_route(path, square):
    """Layers on the two-step path, which never see their product, are left to the batched operation."""
    model, x = model_and_input(path, square)
    model.body[2].path = "two_step"
    plain = gradients(model, x)
    batched = gradients(model, x, FrobeniusDecay(model, COEFFICIENT).add_gradients)
    step, handle = attached_step(model, in_backward=True)
    gradients(model, x)
    if path != "auto":
        assert backward_adds(model.body[0]) == (path == "composed")
    assert not backward_adds(model.body[2])
    step()
    fused = gradients(model, x, step)
    assert not backward_adds(model.body[0])
    handle.remove()
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, x, step), plain))
    assert max(relative_error(a, b) for a, b in zip(plain, batched)) > 1e-2
    for ours, theirs in zip(fused, batched):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_an_evaluation_between_backward_and_step_changes_nothing():
    """Also where its batch is of a size for which layers take the other path."""
    model, x = model_and_input("composed")
    expected = gradients(model, x, FrobeniusDecay(model, COEFFICIENT).add_gradients)
    step, _ = attached_step(model, in_backward=True)
    gradients(model, x)
    with torch.no_grad():
        for layer in factorized_modules(model).values():
            layer.path = "two_step"
        model.eval()(x)
    loss_of(model, x)  # nor does a forward pass without its backward pass
    step()
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-10)


def test_a_path_that_changes_from_step_to_step():
    """Each step goes by what its own backward pass did, the other way round as well."""
    model, x = model_and_input("composed")
    expected = gradients(model, x, FrobeniusDecay(model, COEFFICIENT).add_gradients)
    step, _ = attached_step(model, in_backward=True)
    for path in ("composed", "two_step", "two_step", "composed"):
        for layer in factorized_modules(model).values():
            layer.path = path
        for ours, theirs in zip(gradients(model, x, step), expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_repeated_use_of_a_weight_is_noticed():
    model, x = model_and_input("composed")
    step, _ = attached_step(model, in_backward=True)
    loss_of(model, x).backward()
    loss_of(model, x).backward()
    with pytest.warns(
        UserWarning, match="stem, body.0, body.2 and 2 more was used more than once.*without in_backward"
    ):
        step()


def test_in_backward_with_a_fused_optimizer_that_unscales_is_refused():
    model, x = model_and_input("composed", dtype=torch.float32)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1), lr=0.01, fused=True)
    FrobeniusDecay(model, COEFFICIENT).attach(optimizer, in_backward=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model, x)).backward()
    with pytest.raises(ValueError, match="without in_backward"):
        scaler.step(optimizer)


@pytest.mark.parametrize("in_backward", [False, True])
def test_autocast_adds_the_decay_in_single_precision(in_backward):
    """A loss whose gradient is zero leaves the decay alone, with the digits of float32."""
    model, x = model_and_input("composed", dtype=torch.float32)
    decay = FrobeniusDecay(model, COEFFICIENT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    decay.attach(optimizer, in_backward)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        assert output.dtype == torch.bfloat16
    (0 * output).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):  # programs that take the whole step in one block
        optimizer.step()
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
    expected = gradients(model, x, FrobeniusDecay(model, COEFFICIENT).add_gradients)
    step, _ = attached_step(model, in_backward=True)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(2):
        found = gradients(model, x, step, compiled)
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", ["composed", "two_step"])
def test_in_backward_in_a_captured_graph(path, fresh_compiler):
    """Without graph breaks, and the captured program still tells who is to add the decay."""
    model, x = model_and_input(path)
    assert_compiled_gradients_equal_eager_ones(model, x, "aot_eager")


def test_in_backward_in_a_generated_program(fresh_compiler):
    """The same with the default compiler, on one layer, because it takes seconds for each."""
    model = factorize(nn.Sequential(nn.Conv2d(3, 4, 3)), rank_scale=0.3, path="composed").double()
    assert_compiled_gradients_equal_eager_ones(model, torch.randn(2, 3, 6, 6, dtype=torch.float64), "inductor")


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_optimizer_that_decays_a_factor_itself_is_refused(name):
    """Every factor gets exactly one kind of decay."""
    model, _ = model_and_input()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, weight_decay=1e-4)
    with pytest.raises(ValueError, match="stem.*both Frobenius and L2.*parameter_groups"):
        FrobeniusDecay(model, 1e-4).attach(optimizer)
    optimizer = getattr(torch.optim, name)(parameter_groups(model, 1e-4, exclude=["head"]), lr=0.1)
    with pytest.raises(ValueError, match="^head would"):
        FrobeniusDecay(model, 1e-4).attach(optimizer)
    FrobeniusDecay(model, 1e-4, exclude=["head"], decoupled=True).attach(optimizer)


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
