"""The training objective: cross-entropy with label smoothing, summed over target tokens."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _LabelSmoothedCrossEntropy(torch.autograd.Function):
    """One array of the size of the logits holds log-probabilities in the forward pass, then becomes the gradient.

    Autograd would keep the log-probabilities and make three more such arrays, and large fresh arrays are what this
    costs on a CPU.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
        nll = -log_p.gather(1, target[:, None]).sum()
        loss = (1 - smoothing) * nll
        if smoothing:
            loss = loss - smoothing / logits.shape[1] * log_p.sum()
        ctx.save_for_backward(log_p, target)
        ctx.smoothing, ctx.dtype = smoothing, logits.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient: Tensor, _: None) -> tuple[Tensor, None, None]:
        gradient, target = ctx.saved_tensors
        smoothing = ctx.smoothing
        gradient.exp_()
        if smoothing:
            gradient.sub_(smoothing / gradient.shape[1])
        gradient.mul_(loss_gradient)
        gold = (-(1 - smoothing) * loss_gradient).to(gradient.dtype)
        gradient.scatter_add_(1, target[:, None], gold.expand(len(target), 1))
        return gradient.to(ctx.dtype), None, None


def label_smoothed_cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the loss and the negative log-likelihood, both in nats and summed over tokens, 0-dim, at least float32.

        loss = sum over tokens of  (1 - smoothing) (-log p_y) + smoothing / V * sum over symbols v of (-log p_v)

    Only the loss has a gradient, and it can be taken once.

    Args:
        logits: shape (tokens, V).
        target: the right symbols, shape (tokens,).
        smoothing: share of the probability that is spread over all V symbols, the right one included.
    """
    return _LabelSmoothedCrossEntropy.apply(logits, target, smoothing)
