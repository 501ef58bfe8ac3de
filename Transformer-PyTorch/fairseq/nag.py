"""Nesterov's accelerated gradient with decoupled weight decay."""

from collections.abc import Callable, Iterable

import torch
from torch.optim.optimizer import Optimizer
from torch.optim.sgd import sgd


class NAG(Optimizer):
    """The update that fairseq calls NAG. With rate `lr`, momentum `m`, weight decay `w` and gradient `g`:

        p <- p (1 - lr w)
        b <- m lr/lr_old b - lr g
        p <- p + m b - lr g

    where `lr_old` is the rate of the step before. With `v = -b / lr` the rates cancel, `v <- m v + g` and
    `p <- p - lr (g + m v)`, which is PyTorch's Nesterov momentum and has one fused operation. So `v` is what is kept
    (`momentum_buffer`), and no earlier rate needs to be.

    Args:
        params: parameters, or groups of them that may have their own `lr`, `momentum`, `weight_decay`.
        lr: learning rate, at least 0.
        momentum: from 0 to below 1.
        weight_decay: at least 0; multiplied by the learning rate, not by the gradient's scale.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(self, params: Iterable, lr: float, momentum: float = 0.99, weight_decay: float = 0.0):
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0, not {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, not {momentum}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            sgd(
                parameters,
                [p.grad for p in parameters],
                [self.state[p]["momentum_buffer"] for p in parameters],
                fused=True,
                lr=group["lr"],
                momentum=group["momentum"],
                nesterov=group["momentum"] > 0,
                dampening=0.0,
                weight_decay=0.0,
                maximize=False,
            )
        return loss
