"""Side-by-side timing: candidates take turns, so that a change in the machine's load meets them all alike."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def medians(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int = 9,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each candidate over `repeats` rounds, after `warm_up` rounds that do not count.

    Args:
        clock: `time.process_time` leaves out what other programs take of a busy CPU; right for a single thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        for name, candidate in candidates.items():
            _wait()
            start = clock()
            candidate()
            _wait()
            if turn >= warm_up:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measured(call: Callable[[], Any], clock: Callable[[], float]) -> tuple[Any, float, float]:
    """Return what a call returns, its seconds, and the most memory it took beyond what there was, in GiB (of Linux)."""

    def resident(what: str) -> float:
        return int(re.findall(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 2**20

    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before, start = resident("VmRSS"), clock()
    found = call()
    return found, clock() - start, resident("VmHWM") - before


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def begin(cpu_time: bool) -> Callable[[], float]:
    """Print what is measured and on what; return the clock: of the wall, or of the CPU with a single thread."""
    print(describe())
    if not cpu_time:
        return time.perf_counter
    torch.set_num_threads(1)
    print("CPU time of one thread")
    return time.process_time


def device() -> torch.device:
    """Return the device to measure on: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe() -> str:
    """Return the machine and the versions that a measurement belongs to; sets two threads on a CPU."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    threads = f"{platform.machine()}, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else threads
    return f"{machine}; torch {torch.__version__}"


def needed(module: str, packages: str) -> str:
    """Return the version of a package that is compared with; without it, end with one line that says what to install.

    Args:
        packages: as pip takes them, the one with the module first.
    """
    if importlib.util.find_spec(module) is None:
        print(f"{Path(sys.argv[0]).name} needs {module}: pip install {packages}", file=sys.stderr)
        raise SystemExit(2)
    return importlib.metadata.version(packages.split()[0])
