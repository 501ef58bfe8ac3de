"""What an attached decay accepts and refuses: closures, wrapped and copied optimizers, other models, a second decay."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn

from factorized import FactorizedLinear, FrobeniusDecay, factorize, factorized_modules, parameter_groups
from tests.factorized.networks import small_cnn

COEFFICIENT = 0.3


def model_and_input():
    return factorize(small_cnn(), rank_scale=0.3).double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)


def explicit_loss(model, x):
    """The loss with the penalty in it, for automatic differentiation."""
    products = [layer.U @ layer.VT for layer in factorized_modules(model).values()]
    return model(x).square().mean() + COEFFICIENT / 2 * sum(product.square().sum() for product in products)


def train_explicitly(model, x, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        explicit_loss(model, x).backward()
        optimizer.step()


def assert_same_parameters(model, other):
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def closure_of(model, x, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_gets_the_decay_after_its_gradients(keyword):
    model, x = model_and_input()
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    FrobeniusDecay(model, COEFFICIENT).attach(optimizer)
    closure = closure_of(model, x, optimizer)
    for _ in range(3):
        loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert loss.ndim == 0 and loss > 0  # the closure's own
    train_explicitly(other, x, torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9))
    assert_same_parameters(model, other)
    optimizer.step(None)


def test_a_closure_that_is_called_many_times():
    """A line search needs losses that belong to the gradients: with the penalty in them."""
    model, x = model_and_input()
    other, calls = copy.deepcopy(model), []
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=6, line_search_fn="strong_wolfe")
    FrobeniusDecay(model, COEFFICIENT).attach(optimizer)
    closure = closure_of(model, x, optimizer)
    optimizer.step(lambda: calls.append(1) or closure())
    reference = torch.optim.LBFGS(other.parameters(), max_iter=6, line_search_fn="strong_wolfe")

    def explicitly():
        reference.zero_grad()
        loss = explicit_loss(other, x)
        loss.backward()
        return loss

    reference.step(explicitly)
    assert len(calls) > 6
    assert_same_parameters(model, other)


class Holding(torch.optim.Optimizer):
    """An optimizer around another one, as libraries that move training to other devices have them."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


@pytest.mark.parametrize("attach_first", [False, True])
def test_optimizers_inside_of_others(attach_first):
    model, x = model_and_input()
    other = copy.deepcopy(model)
    inner = torch.optim.SGD(parameter_groups(model, 0.0), lr=0.05)
    outer = Holding(Holding(inner))
    FrobeniusDecay(model, COEFFICIENT).attach(inner if attach_first else outer)
    for _ in range(3):
        inner.zero_grad()
        model(x).square().mean().backward()
        outer.step()
    train_explicitly(other, x, torch.optim.SGD(other.parameters(), lr=0.05))
    assert_same_parameters(model, other)


def test_what_holds_no_optimizer_is_refused():
    model, _ = model_and_input()
    decay = FrobeniusDecay(model, COEFFICIENT)
    circle = Holding(None)
    circle.optimizer = circle
    for wrong in (model, "sgd", Holding(None), circle):
        with pytest.raises(TypeError, match=f"Optimizer.*not {type(wrong).__name__}; call add_gradients"):
            decay.attach(wrong)


def test_an_optimizer_made_before_factorizing_is_refused():
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    decay = FrobeniusDecay(factorize(model, rank_scale=0.3), COEFFICIENT)
    with pytest.raises(ValueError, match="lacks stem.U, stem.VT, body.0.U and 7 more.*after factorizing"):
        decay.attach(optimizer)
    with pytest.raises(ValueError, match="lacks U, VT"):
        FrobeniusDecay(FactorizedLinear(3, 4, 2), 0.1).attach(optimizer)


def test_the_optimizer_of_another_model_is_refused():
    (model, _), (other, _) = model_and_input(), model_and_input()
    with pytest.raises(ValueError, match="lacks stem.U"):
        FrobeniusDecay(model, COEFFICIENT).attach(torch.optim.SGD(other.parameters(), lr=0.1))


def test_an_optimizer_of_a_part_of_the_model():
    """Factors that are frozen may be missing; the others must be left out of the decay."""
    model, _ = model_and_input()
    head = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="lacks stem.U.*include or exclude"):
        FrobeniusDecay(model, COEFFICIENT).attach(head)
    handle = FrobeniusDecay(model, COEFFICIENT, include=["head"]).attach(head)
    FrobeniusDecay(model, COEFFICIENT, exclude=["head"]).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    handle.remove()
    model.requires_grad_(False).head.requires_grad_()
    gc.collect()
    FrobeniusDecay(model, COEFFICIENT).attach(head)


def test_nothing_trained_is_told():
    model, _ = model_and_input()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.requires_grad_(False)
    with pytest.warns(UserWarning, match="no factor requires gradients"):
        FrobeniusDecay(model, COEFFICIENT).attach(optimizer)


def test_a_second_decay_of_a_layer_is_refused():
    """Attached twice, one of an overlapping choice, or by hand, until the first is removed or its optimizer gone."""
    model, _ = model_and_input()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    decay, second = FrobeniusDecay(model, COEFFICIENT, include=["body", "head"]), FrobeniusDecay(model, 0.1)
    handle = decay.attach(optimizer)
    for again in (decay, second):
        with pytest.raises(ValueError, match="body.0, body.2, head would be decayed twice.*remove"):
            again.attach(optimizer)
        with pytest.raises(ValueError, match="body.0, body.2, head is attached"):
            again.add_gradients()
    FrobeniusDecay(model, 0.1, exclude=["body", "head"]).add_gradients()
    handle.remove()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    second.attach(other)
    del other
    gc.collect()
    decay.attach(optimizer)


def test_a_coefficient_of_zero_changes_nothing():
    model, x = model_and_input()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    FrobeniusDecay(model, 0.0).attach(optimizer, in_backward=True)
    model(x).square().sum().backward()
    expected = [p - 0.1 * p.grad for p in model.parameters()]
    optimizer.step()
    for parameter, value in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter, value)


def test_the_end_of_the_optimizer_ends_the_decay_of_the_backward_pass():
    model, _ = model_and_input()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    FrobeniusDecay(model, COEFFICIENT).attach(optimizer, in_backward=True)
    assert model.head.kernel_decay is not None
    del optimizer
    assert model.head.kernel_decay is None


@pytest.mark.parametrize("in_backward, decoupled", [(False, False), (True, False), (False, True)])
def test_a_copied_optimizer_decays_the_copied_model(in_backward, decoupled):
    model, x = model_and_input()
    for layer in factorized_modules(model).values():
        layer.path = "composed"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    FrobeniusDecay(model, COEFFICIENT, decoupled=decoupled).attach(optimizer, in_backward)

    def train(network, its_optimizer):
        its_optimizer.zero_grad()
        network(x).square().mean().backward()
        its_optimizer.step()

    train(model, optimizer)
    other, its_optimizer = copy.deepcopy((model, optimizer))
    twice, its_copy = copy.deepcopy((other, its_optimizer))
    alone = copy.deepcopy(model)
    assert alone.head.kernel_decay is None
    for _ in range(2):
        train(model, optimizer)
        train(other, its_optimizer)
        train(twice, its_copy)
    assert_same_parameters(model, other)
    assert_same_parameters(model, twice)
    assert not torch.equal(alone.head.U, model.head.U)
    FrobeniusDecay(alone, COEFFICIENT).add_gradients()  # it is attached to nothing


def test_a_copied_decay_decays_the_copied_model():
    model, _ = model_and_input()
    other, decay = copy.deepcopy((model, FrobeniusDecay(model, COEFFICIENT)))
    decay.add_gradients()
    assert all(p.grad is None for p in model.parameters()) and other.head.U.grad is not None


# -- decoupled -----------------------------------------------------------------------------------------------------


def decoupled_step_by_hand(model, rates):
    """`factor -= lr * coefficient * gradient of |U VT|_F^2 / 2`, all of one layer at once."""
    with torch.no_grad():
        for name, layer in factorized_modules(model).items():
            U, VT, rate = layer.U.clone(), layer.VT.clone(), rates.get(name, rates[""]) * COEFFICIENT
            layer.U -= rate * U @ VT @ VT.T
            layer.VT -= rate * U.T @ U @ VT


@pytest.mark.parametrize("tensor_rates", [False, True])
@pytest.mark.parametrize("closure", [False, True])
def test_decoupled_decay_is_untouched_by_adam(closure, tensor_rates):
    """With the rate that each group has at that step; as a tensor, too, which captured optimizers have."""
    model, x = model_and_input()
    other = copy.deepcopy(model)

    def groups(network):
        head, rest = (
            list(network.head.parameters()),
            list(network.parameters())[: -len(list(network.head.parameters()))],
        )
        rate = torch.tensor if tensor_rates else float
        return [{"params": rest, "lr": rate(0.01)}, {"params": head, "lr": rate(0.03)}]

    optimizer = torch.optim.AdamW(groups(model), weight_decay=0)
    reference = torch.optim.AdamW(groups(other), weight_decay=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrobeniusDecay(model, COEFFICIENT, decoupled=True).attach(optimizer)
    for halving in (1.0, 0.5, 0.25):
        for group in optimizer.param_groups + reference.param_groups:
            group["lr"] = group["lr"] * halving
        if closure:
            optimizer.step(closure_of(model, x, optimizer))
        else:
            closure_of(model, x, optimizer)()
            optimizer.step()
        closure_of(other, x, reference)()
        reference.step()
        decoupled_step_by_hand(other, {"": 0.01 * halving, "head": 0.03 * halving})
        for group in optimizer.param_groups + reference.param_groups:
            group["lr"] = group["lr"] / halving
    assert_same_parameters(model, other)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_skips_has_no_decoupled_decay(fused):
    model = factorize(small_cnn(), rank_scale=0.3)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.01, fused=fused)
    FrobeniusDecay(model, COEFFICIENT, decoupled=True).attach(optimizer)
    scaler, before = torch.amp.GradScaler("cpu", init_scale=1024.0), copy.deepcopy(model)
    scaler.scale(model(torch.randn(4, 3, 8, 8)).mean() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    for ours, theirs in zip(model.parameters(), before.parameters()):
        assert torch.equal(ours, theirs)
    optimizer.zero_grad()
    scaler.scale(model(torch.randn(4, 3, 8, 8)).mean()).backward()
    scaler.step(optimizer)
    assert not torch.equal(model.head.U, before.head.U)


def test_what_a_decoupled_decay_cannot_do():
    model, _ = model_and_input()
    decay = FrobeniusDecay(model, COEFFICIENT, decoupled=True)
    assert "decoupled=True" in repr(decay)
    with pytest.raises(ValueError, match="attach it to the optimizer"):
        decay.add_gradients()
    with pytest.raises(ValueError, match="leave out in_backward"):
        decay.attach(torch.optim.SGD(model.parameters(), lr=0.1), in_backward=True)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RAdam", "NAdam", "Adamax", "Adagrad", "RMSprop"])
def test_optimizers_that_rescale_the_decay_are_told(name):
    model, _ = model_and_input()
    optimizer = getattr(torch.optim, name)(parameter_groups(model, 0.0))
    with pytest.warns(UserWarning, match=f"{name} rescales gradients.*decoupled=True"):
        handle = FrobeniusDecay(model, COEFFICIENT).attach(optimizer)
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrobeniusDecay(model, 0.0).attach(optimizer).remove()
        FrobeniusDecay(model, COEFFICIENT, decoupled=True).attach(optimizer).remove()
        FrobeniusDecay(model, COEFFICIENT).attach(torch.optim.SGD(parameter_groups(model, 0.0), lr=0.1))


# -- wrappers ------------------------------------------------------------------------------------------------------


class Sharded(nn.Module):
    """A wrapper of one layer that hands on its attributes, as those that shard or checkpoint a layer do."""

    def __init__(self, layer, name):
        super().__init__()
        self._modules[name] = layer

    def __getattr__(self, name):
        (inside,) = self._modules.values()
        return self._modules[name] if name in self._modules else getattr(inside, name)

    def forward(self, x):
        (inside,) = self._modules.values()
        return inside(x)


@pytest.mark.parametrize("name", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
def test_patterns_do_not_see_the_wrappers_of_layers(name):
    model, x = model_and_input()
    expected = list(factorized_modules(model))
    layers = list(factorized_modules(model).values())
    model.body[0] = Sharded(model.body[0], name)
    model.head = Sharded(model.head, name)
    model = Sharded(model, name)
    assert list(factorized_modules(model)) == expected and list(factorized_modules(model).values()) == layers
    assert list(FrobeniusDecay(model, COEFFICIENT, include=["body.0", "head"]).modules) == ["body.0", "head"]
    assert len(parameter_groups(model, 0.1, include=["body"])[1]["params"]) == 4
    assert model(x).shape == (4, 4)


def test_a_compiled_layer_is_one_layer():
    model, _ = model_and_input()
    model.head = torch.compile(model.head)
    assert list(factorized_modules(model)) == ["stem", "body.0", "body.2", "hidden", "head"]


def test_flat_shards_are_refused():
    class FullyShardedDataParallel(nn.Sequential):
        pass

    with pytest.raises(ValueError, match="flat pieces.*fully_shard"):
        FrobeniusDecay(nn.Sequential(FullyShardedDataParallel(FactorizedLinear(3, 4, 2))), 0.1)
