"""Trains a small model sharded between two processes and whole; `torchrun` starts it for test_decay_sharded.py.

`python -m tests.factorized.sharded FILE` writes parameters and penalties of both after three steps.
"""

import copy
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from factorized import FactorizedAttention, FactorizedLinear, FrobeniusDecay, parameter_groups

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
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [*(p.detach().clone() for p in whole), decay.penalty()]


def main(path: str) -> None:
    """Train, and let the first process write `path`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo")
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
    if distributed.get_rank() == 0:
        torch.save(found, path)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
