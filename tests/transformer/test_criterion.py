"""The objective against its formula, autograd and PyTorch's own cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterion import label_smoothed_cross_entropy


def formula(logits, target, smoothing):
    """The sums over tokens, written down as in the definition."""
    log_p = logits.log_softmax(1)
    gold = torch.stack([row[y] for row, y in zip(log_p, target)])
    return (-(1 - smoothing) * gold - smoothing / logits.shape[1] * log_p.sum(1)).sum(), -gold.sum()


@pytest.fixture
def batch():
    logits = 3 * torch.randn(7, 11, dtype=torch.float64)
    return logits.requires_grad_(), torch.tensor([0, 10, 3, 3, 1, 2, 10])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_values_and_gradient_are_those_of_the_formula(batch, smoothing):
    logits, target = batch
    ours, theirs = label_smoothed_cross_entropy(logits, target, smoothing), formula(logits, target, smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(0.3 * ours[0], logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(0.3 * theirs[0], logits)[0], rtol=1e-12, atol=1e-14)


def test_without_smoothing_it_is_cross_entropy(batch):
    logits, target = batch
    loss, nll = label_smoothed_cross_entropy(logits, target)
    expected = F.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close((loss, nll), (expected, expected))


def test_a_batch_is_the_sum_of_its_tokens(batch):
    logits, target = batch
    whole = label_smoothed_cross_entropy(logits, target, 0.1)
    parts = [label_smoothed_cross_entropy(logits[i : i + 1], target[i : i + 1], 0.1) for i in range(len(target))]
    torch.testing.assert_close(whole, tuple(map(sum, zip(*parts))))


def test_no_tokens_have_no_loss():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss, nll = label_smoothed_cross_entropy(logits, torch.zeros(0, dtype=torch.long), 0.1)
    assert (loss.item(), nll.item()) == (0, 0)
    assert torch.autograd.grad(loss, logits)[0].shape == (0, 5)


def test_half_precision_is_summed_in_single(batch):
    logits, target = batch[0].detach().bfloat16().requires_grad_(), batch[1]
    loss, nll = label_smoothed_cross_entropy(logits, target, 0.1)
    torch.testing.assert_close((loss, nll), formula(logits.float(), target, 0.1))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (loss.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)


def test_huge_scores_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss, nll = label_smoothed_cross_entropy(logits, torch.tensor([1]), 0.3)
    assert (nll.item(), loss.item()) == (1e4, pytest.approx(0.7e4 + 0.1 * 3e4))
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.tensor([[0.9, -0.8, -0.1]]))


def test_the_gradient_can_be_taken_once(batch):
    logits, target = batch
    loss, _ = label_smoothed_cross_entropy(logits, target, 0.1)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
