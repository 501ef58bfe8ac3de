"""Which setting would have made a long run faster on this machine, as measured at its end."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from .devices import Computing

LONG = 600
"""Seconds of a run from which on its settings are worth a few steps more."""
_REPEATS = 3
_WORTH = 1.1  # times as fast


def faster(step: Callable[[], object], model: nn.Module, computing: Computing, seconds: float) -> list[str]:
    """Return a line on `--amp bf16` if it makes a step of this run clearly faster here; none for a short run.

    The steps that this takes change neither the model nor random numbers. A run in another precision, a compiled one,
    which would have to be compiled again, and one of several processes are left as they are.

    Args:
        step: does a forward and a backward pass as the run did, in the precision of its surroundings.
        model: whose gradients and buffers are put back.
        seconds: that the run has taken.
    """
    alone = computing.world_size == 1 and not computing.compile and computing.amp is None
    if seconds < LONG or not alone or (computing.device.type == "cuda" and not torch.cuda.is_bf16_supported()):
        return []
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([computing.device] if computing.device.type == "cuda" else []):
        plain, short = _measured(step, computing.device)
    model.zero_grad(set_to_none=True)
    for buffer, before in buffers:
        buffer.copy_(before)
    if plain < _WORTH * short:
        return []
    return [
        f"--amp bf16 makes a step {plain / short:.1f} times as fast on this machine ({short:.3g} s instead of "
        f"{plain:.3g} s, just measured), and rounds otherwise; docs/results.md has measurements of --compile"
    ]


def _measured(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the median seconds of a step in float32 and in bf16, taken in turns after one of each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + _REPEATS):
        for enabled, found in zip((False, True), times):
            _wait(device)
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                step()
            _wait(device)
            found.append(time.perf_counter() - started)
    plain, short = (statistics.median(found[1:]) for found in times)
    return plain, short


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
