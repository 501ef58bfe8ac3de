"""The optimizer against its published recursion."""

import pytest
import torch
from fairseq.nag import NAG

STEPS = [(0.1, 1.0), (0.1, -0.5), (0.05, 0.25), (0.2, 0.25)]


def run(optimizer, parameter, steps):
    """Take steps given as (rate, gradient); return parameter and velocity `b` after each."""
    history = []
    for lr, gradient in steps:
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        history.append((parameter.item(), -lr * optimizer.state[parameter]["momentum_buffer"].item()))
    return history


def recursion(steps, theta, momentum, decay, old):
    """The update as the 2018 toolkit states it, with a correction of the velocity for changing rates."""
    b, history = 0.0, []
    for lr, gradient in steps:
        theta *= 1 - lr * decay
        theta += momentum**2 * lr / old * b - (1 + momentum) * lr * gradient
        b = momentum * lr / old * b - lr * gradient
        old = lr
        history.append((theta, b))
    return history


def test_published_values():
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    history = run(NAG([parameter], lr=0.1, momentum=0.9, weight_decay=0.01), parameter, STEPS)
    assert [theta for theta, _ in history] == pytest.approx([0.809, 0.822191, 0.7818299045, 0.586446244691], rel=1e-12)
    assert [b for _, b in history] == pytest.approx([-0.1, -0.04, -0.0305, -0.1598], rel=1e-12)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equal_to_the_recursion(momentum, decay):
    steps = [(0.2 + 0.1 * (i % 3), (-1) ** i * (i + 0.5)) for i in range(20)]
    parameter = torch.nn.Parameter(torch.full((1,), 3.0, dtype=torch.float64))
    history = run(NAG([parameter], lr=7.0, momentum=momentum, weight_decay=decay), parameter, steps)
    assert history == [pytest.approx(pair, rel=1e-11) for pair in recursion(steps, 3.0, momentum, decay, 7.0)]


def test_it_is_nesterovs_momentum_where_nothing_decays():
    ours, theirs = (torch.nn.Parameter(torch.arange(5.0)) for _ in range(2))
    nag, sgd = NAG([ours], lr=0.1, momentum=0.9), torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(4):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        nag.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)


def test_without_momentum_it_is_gradient_descent():
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    history = run(NAG([parameter], lr=1.0, momentum=0.0), parameter, STEPS)
    assert [theta for theta, _ in history] == pytest.approx([0.9, 0.95, 0.9375, 0.8875])


def test_a_step_at_rate_zero_does_not_stop_the_next():
    """The recursion would divide by that rate; the velocity is kept instead."""
    parameter = torch.nn.Parameter(torch.ones(1))
    history = run(NAG([parameter], lr=0.1, momentum=0.9), parameter, [(0.0, 1.0), (0.1, 1.0)])
    assert history == [(1.0, 0.0), (pytest.approx(1 - 0.1 * (1 + 0.9 * 1.9)), pytest.approx(-0.19))]


def test_groups_decay_by_their_own_weight():
    decayed, free = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = NAG([{"params": [decayed], "weight_decay": 0.5}, {"params": [free]}], lr=0.1)
    for parameter in (decayed, free):
        parameter.grad = torch.zeros(3)
    optimizer.step()
    assert decayed.tolist() == pytest.approx([0.95] * 3)
    assert free.tolist() == [1.0] * 3


def test_parameters_without_gradient_stay():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = NAG([parameter], lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert parameter.tolist() == [1.0] * 3 and not optimizer.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr must be at least 0, not -1"),
        ({"lr": float("nan")}, "lr must be at least 0, not nan"),
        ({"lr": 1, "momentum": 1}, "momentum must be at least 0 and below 1, not 1"),
        ({"lr": 1, "weight_decay": -0.1}, "weight_decay must be at least 0, not -0.1"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NAG([torch.nn.Parameter(torch.ones(1))], **options)
