"""Layers that are started in several threads come out as from one."""

import threading

import pytest
import torch
from torch import nn

from factorized import factorize, factorized_modules
from factorized.linalg.parallel import for_each


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "count, on_gpu, share", [(2, False, 2), (9, False, 1), (1, False, 4), (2, True, 4), (0, False, None)]
)
def test_items_share_the_threads(four_threads, mode, count, on_gpu, share):
    seen, meeting = [], threading.Barrier(2)

    def call(item):
        if share == 2:
            meeting.wait(timeout=30)  # passed only if both are called at a time
        seen.append((item, torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    with mode():
        for_each(call, range(count), on_gpu)
    assert sorted(seen) == [(item, share, False, mode is torch.inference_mode) for item in range(count)]
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert torch.get_num_threads() == seen[-1] == 4


def test_a_failure_reaches_the_caller(four_threads):
    with pytest.raises(ZeroDivisionError):
        for_each(lambda item: 1 / item, [1, 0, 2], on_gpu=False)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("inference", [False, True])
def test_spectral_start_in_threads(four_threads, inference):
    """Small layers in a batch, large ones each for itself, in a mode in which parameters are not like others."""

    def layers():
        torch.manual_seed(0)
        return nn.Sequential(*[nn.Conv2d(width, width, 3) for width in (4, 4, 5, 180, 180, 6)])

    with torch.inference_mode(inference):
        found = factorized_modules(factorize(layers(), rank_scale=0.02))
        torch.set_num_threads(1)
        expected = factorized_modules(factorize(layers(), rank_scale=0.02))
    assert len(found) == 6
    for ours, theirs in zip(found.values(), expected.values()):
        torch.testing.assert_close(ours.product(), theirs.product(), rtol=0, atol=1e-5)
        assert ours.U.requires_grad
