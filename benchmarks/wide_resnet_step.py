"""Training step and peak memory of WRN-28-10 at the six compressed settings, against dense.

Batch 32 on a CPU, 128 on a GPU. Target: every setting at most the dense step in time and in memory.

    python benchmarks/wide_resnet_step.py [REPEATS [BATCH]]        default 5 repeats
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import describe, device, medians

import factorized

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "deficient-efficient"))
from deficient.networks import Config, build  # noqa: E402  (an experiment's folder is not a package)

SETTINGS = {
    "dense": Config("WideResNet", tuple("0123456789"), depth=28, width=10),
    "Conv 0.01667": Config("WideResNet", tuple("0123456789"), depth=28, width=10, rank_scale=0.007568359375),
    "Conv 0.06667": Config("WideResNet", tuple("0123456789"), depth=28, width=10, rank_scale=0.031982421875),
    **{
        conv.replace("_", " "): Config("WideResNet", tuple("0123456789"), conv, depth=28, width=10)
        for conv in ("TensorTrain_0.234", "TensorTrain_0.705", "Tucker_0.211", "Tucker_0.68")
    },
}
BATCH = 128 if torch.cuda.is_available() else 32


def step(config: Config, batch: int) -> Callable[[], None]:
    """Return a function that runs one training step (forward, backward, Frobenius decay, SGD) on a fixed batch."""
    torch.manual_seed(0)
    model = build(config).to(device()).train()
    optimizer = torch.optim.SGD(factorized.parameter_groups(model, 5e-4), lr=1e-3, momentum=0.9)
    factorized.FrobeniusDecay(model, 5e-4, in_backward=True).attach(optimizer)
    images = torch.randn(batch, 3, 32, 32, device=device())
    labels = torch.randint(10, (batch,), device=device())

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def peak_memory(setting: str, batch: int) -> float:
    """Return the GiB that one step needs, in a process of its own; on a CPU the process itself is not counted."""
    command = [sys.executable, __file__, "--memory", setting, str(batch)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def print_memory(setting: str, batch: int) -> None:
    """Print what `peak_memory` reads."""
    describe()
    if torch.cuda.is_available():
        step(SETTINGS[setting], batch)()
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step(SETTINGS[setting], batch)()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)


def main() -> None:
    given = [int(number) for number in sys.argv[1:]]
    repeats, batch = given + [5, BATCH][len(given) :]
    print(f"{describe()}; batch {batch}")
    memory = {name: peak_memory(name, batch) for name in SETTINGS}
    seconds = medians({name: step(config, batch) for name, config in SETTINGS.items()}, repeats=repeats, warm_up=1)
    for name, value in seconds.items():
        time, space = value / seconds["dense"], memory[name] / memory["dense"]
        print(f"{name:18} {value:8.3f} s, {time:.2f} of dense   {memory[name]:6.2f} GiB, {space:.2f} of dense")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print_memory(sys.argv[2], int(sys.argv[3]))
    else:
        main()
