"""Trains a model with composed weights in two processes and whole; `torchrun` starts it for test_composed_parallel.py.

`python -m tests.factorized.parallel FILE` writes the parameters of all after two steps.
"""

import copy
import sys
from collections.abc import Callable

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from factorized import FrobeniusDecay, factorize, parameter_groups
from tests.factorized.composing import Everything


def train(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the whole parameters after two steps."""
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1), lr=0.05, momentum=0.9)
    FrobeniusDecay(model, 0.3).attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return whole_parameters(model)


def whole_parameters(model: nn.Module) -> list[torch.Tensor]:
    """Return copies of the parameters, put together where they are sharded."""
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in model.parameters()]


def in_a_group(results: Callable[[], dict], path: str) -> None:
    """Compute the results in every process of the group that `torchrun` has started; the first one writes `path`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo")
    found = results()
    if distributed.get_rank() == 0:
        torch.save(found, path)
    distributed.barrier()
    distributed.destroy_process_group()


def results() -> dict:
    """Train in each way."""
    start = factorize(Everything(), rank_scale=0.4, embeddings=True).double()
    x = torch.randint(50, (4, 9))
    share = x.chunk(2)[distributed.get_rank()]
    sharded = copy.deepcopy(start)
    mesh = init_device_mesh("cpu", (2,))
    for layer in (sharded.attention, sharded.experts, sharded.recurrent):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    return {
        "whole": train(copy.deepcopy(start), x),
        "replicated": train(DistributedDataParallel(copy.deepcopy(start)), share),
        "sharded": train(sharded, share),
    }


if __name__ == "__main__":
    in_a_group(results, sys.argv[1])
