"""What a network is worth before and after, and statistics of batch normalization that fit it again."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lab.devices import Computing


@torch.no_grad()
def renew_norms(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], computing: Computing) -> None:
    """Set the running statistics of every batch normalization to the means over batches, in place.

    The weights stay as they are. What normalizes comes before what reads it, so all of it takes one pass.
    """
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for images, _ in batches:
        if len(images):
            with computing.autocast():
                model(images)
    model.eval()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        for statistics in (norm.running_mean, norm.running_var):
            computing.sum(statistics).div_(computing.world_size)
