"""Learning rates against published values."""

import argparse
import math

import pytest
from fairseq.schedule import Fixed, InverseSquareRoot, ReduceOnPlateau, build, cosine, polynomial


def after(schedule, updates):
    schedule.after_update(updates)
    return schedule.rate


def test_inverse_square_root_as_in_the_experiment():
    schedule = InverseSquareRoot(0.25, 4000, 0.25)
    assert schedule.rate == 0.25
    published = {1: 0.25, 4000: 0.25, 8000: 0.1767767, 16000: 0.125, 50000: 0.0707107, 100000: 0.05}
    assert {n: after(schedule, n) for n in published} == pytest.approx(published, rel=1e-6)


def test_linear_warm_up():
    schedule = InverseSquareRoot(0.25, 4000, 1e-7)
    assert schedule.rate == 1e-7
    assert after(schedule, 1) == pytest.approx(6.25999750e-5)
    assert after(schedule, 2000) == pytest.approx(0.12500005)
    assert [schedule.is_under_way(n) for n in (0, 3999, 4000)] == [True, True, False]
    schedule.after_epoch(3, 1.0)
    assert schedule.rate == pytest.approx(0.12500005)


def test_a_negative_start_means_the_peak():
    assert InverseSquareRoot(0.5, 10, -1).rate == 0.5


def test_without_warm_up():
    schedule = InverseSquareRoot(0.25, 0, 0.1)
    assert [schedule.rate, after(schedule, 1), after(schedule, 4)] == [0.25, 0.25, 0.125]


def test_fixed_rates():
    schedule = Fixed([0.4, 0.2, 0.1])
    rates = [schedule.rate]
    for epoch in range(1, 5):
        schedule.after_epoch(epoch, None)
        rates.append(schedule.rate)
    assert rates == [0.4, 0.2, 0.1, 0.1, 0.1]


def test_forced_annealing():
    schedule = Fixed([0.4, 0.2], anneal=3, shrink=0.5)
    rates = []
    for epoch in range(1, 6):
        schedule.after_epoch(epoch, None)
        rates.append(schedule.rate)
    assert rates == pytest.approx([0.2, 0.2, 0.1, 0.05, 0.025])


def test_plateau():
    schedule = ReduceOnPlateau(1.0, 0.5)
    rates = []
    for epoch, loss in enumerate([3.0, 2.0, 2.0, None, 1.9, 2.5, 1.95]):
        schedule.after_epoch(epoch, loss)
        rates.append(schedule.rate)
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("name", ["fixed", "inverse_sqrt", "reduce_lr_on_plateau"])
def test_a_continued_schedule_is_where_it_was(name):
    flags = {"force_anneal": 1, "lr_shrink": 0.3, "warmup_updates": 7, "warmup_init_lr": 0.01}
    args = argparse.Namespace(lr_scheduler=name, lr=[0.5], **flags)
    schedule, continued = build(args), build(args)
    for update, loss in enumerate([3.0, 4.0, 5.0], 4):
        schedule.after_update(update)
        schedule.after_epoch(update, loss)
    continued.load_state_dict(schedule.state_dict())
    continued.after_update(6)
    continued.after_epoch(6, None)
    assert continued.rate == schedule.rate != build(args).rate
    for other in (schedule, continued):
        other.after_update(7)
        other.after_epoch(7, 4.5)
    assert continued.rate == schedule.rate


@pytest.mark.parametrize("kind", ["cosine", "polynomial"])
def test_a_way_down_to_an_end(kind):
    """Warm-up that ends at the peak, the curve by its formula, and the last rate for ever."""
    schedule = cosine(0.5, 100, 20, 0.1) if kind == "cosine" else polynomial(0.5, 100, 20, 0.1, power=2)
    assert schedule.rate == pytest.approx(0.5 / 21)
    assert after(schedule, 10) == pytest.approx(0.5 * 11 / 21)
    assert after(schedule, 20) == 0.5
    for n in (20, 21, 60, 99, 100):
        x = (n - 20) / 80
        shape = (1 + math.cos(math.pi * x)) / 2 if kind == "cosine" else (1 - x) ** 2
        assert after(schedule, n) == pytest.approx(0.1 + 0.4 * shape)
    assert after(schedule, 150) == 0.1
    assert [schedule.is_under_way(n) for n in (0, 50, 99, 100)] == [True, True, True, False]


def test_a_way_down_without_warm_up_begins_at_the_peak():
    assert cosine(0.5, 10).rate == 0.5
    assert [after(polynomial(1.0, 4), n) for n in range(5)] == [1, 0.75, 0.5, 0.25, 0]
