"""A ResNet20 and its training step, as the benchmarks time them."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import device
from torch import nn

import factorized

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pytorch_resnet_cifar10"))
from resnet import BLOCK_CONVS, build_resnet  # noqa: E402  (an experiment's folder is not a package)

BATCH = 128


def network(rank_scale: float = 0.0, path: str = "auto", channels_last: bool = False) -> nn.Module:
    """Return ResNet20 on the device, dense if `rank_scale` is 0."""
    torch.manual_seed(0)
    model = build_resnet(20)
    if rank_scale:
        factorized.factorize(model, rank_scale=rank_scale, rule="paper", init="kaiming", include=BLOCK_CONVS, path=path)
    return model.to(device(), memory_format=_format(channels_last)).train()


def step(
    model: nn.Module,
    *,
    before_step: Callable[[], object] | None = None,
    decay: bool = False,
    amp: torch.dtype | None = None,
    compiled: bool = False,
    channels_last: bool = False,
    batch: int = BATCH,
) -> Callable[[], None]:
    """Return a function that runs one training step (forward, backward, decay, SGD) on a fixed batch.

    Args:
        before_step: called after the backward pass.
        decay: attach Frobenius decay to the optimizer.
    """
    images = torch.randn(batch, 3, 32, 32, device=device()).to(memory_format=_format(channels_last))
    labels = torch.randint(10, (batch,), device=device())
    optimizer = torch.optim.SGD(factorized.parameter_groups(model, 1e-4), lr=1e-3, momentum=0.9)
    if decay:
        factorized.FrobeniusDecay(model, 1e-4, strict=False).attach(optimizer, in_backward=True)  # dense ones have none
    called = torch.compile(model) if compiled else model

    def run() -> None:
        with torch.autocast(device().type, amp or torch.bfloat16, enabled=amp is not None):
            loss = F.cross_entropy(called(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if before_step:
            before_step()
        optimizer.step()

    return run


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
