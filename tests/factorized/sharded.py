"""Trains a small model sharded between two processes and whole; `torchrun` starts it for test_decay_sharded.py.

`python -m tests.factorized.sharded FILE` writes parameters and penalties of both after three steps.
"""

import copy
import sys

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from factorized import FactorizedAttention, FactorizedLinear, FrobeniusDecay, parameter_groups
from tests.factorized.parallel import in_a_group, whole_parameters

WAYS = {"gradients": {}, "in_backward": {"in_backward": True}, "decoupled": {}}


def train(model: nn.Module, way: str, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the whole parameters after three steps, and the penalty."""
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1), lr=0.05, momentum=0.9)
    decay = FrobeniusDecay(model, 0.3, decoupled=way == "decoupled")
    decay.attach(optimizer, **WAYS[way])
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [*whole_parameters(model), decay.penalty()]


def results() -> dict:
    """Train in each way, sharded and whole."""
    layers = [FactorizedLinear(6, 6, 3, path=path) for path in ("composed", "two_step", "composed")]
    start, x = nn.Sequential(*layers, FactorizedAttention(6, 2)).double(), torch.randn(2, 4, 6).double()
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.mul_(0.5)  # as they start, three steps would be too many
    found = {}
    for way in WAYS:
        model = copy.deepcopy(start)
        mesh = init_device_mesh("cpu", (2,))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        found[way] = train(model, way, x), train(copy.deepcopy(start), way, x)
    return found


if __name__ == "__main__":
    in_a_group(results, sys.argv[1])
