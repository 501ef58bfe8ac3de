"""Training step and peak memory of WRN-28-10 at the six compressed settings, against dense.

A step is forward, backward, Frobenius decay and SGD, of 32 images on a CPU (one thread, in CPU time, so that other
programs do not count) and 128 on a GPU. Target: every setting in less time than the dense step. A tensor layer keeps
one more activation than a dense one, the output of its depthwise convolution, and far fewer parameters; which weighs
more depends on the batch.

    python benchmarks/wide_resnet_step.py                                  all settings: four minutes of CPU time
    python benchmarks/wide_resnet_step.py Tucker_0.68 --repeats 1          one setting and dense
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import describe, device, medians

import factorized

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "deficient-efficient"))
from deficient.networks import Config, build  # noqa: E402  (an experiment's folder is not a package)

DENSE = Config("WideResNet", tuple("0123456789"), depth=28, width=10)
# Conv: by the parameters kept, which are those of the tensor settings beside it; the scales are the search's.
SETTINGS = {
    "Conv_0.01667": {"rank_scale": 0.007568359375},
    "TensorTrain_0.234": {"conv": "TensorTrain_0.234"},
    "Tucker_0.211": {"conv": "Tucker_0.211"},
    "Conv_0.06667": {"rank_scale": 0.031982421875},
    "TensorTrain_0.705": {"conv": "TensorTrain_0.705"},
    "Tucker_0.68": {"conv": "Tucker_0.68"},
}


def config(setting: str) -> Config:
    """Return the network of a setting, or the dense one."""
    return DENSE if setting == "dense" else replace(DENSE, **SETTINGS[setting])


def step(setting: str, batch: int) -> Callable[[], None]:
    """Return a function that runs one training step on a fixed batch."""
    torch.manual_seed(0)
    model = build(config(setting)).to(device()).train()
    optimizer = torch.optim.SGD(factorized.parameter_groups(model, 5e-4), lr=1e-3, momentum=0.9)
    factorized.FrobeniusDecay(model, 5e-4).attach(optimizer, in_backward=True)
    images = torch.randn(batch, 3, 32, 32, device=device())
    labels = torch.randint(10, (batch,), device=device())

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def peak_memory(setting: str, batch: int) -> float:
    """Return the GiB that one step needs, in a process of its own; on a CPU the process itself is not counted."""
    command = [sys.executable, __file__, setting, "--batch", str(batch), "--memory"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(setting: str, batch: int) -> float:
    """Return what `peak_memory` reads."""
    if torch.cuda.is_available():
        step(setting, batch)()
        return torch.cuda.max_memory_allocated() / 2**30
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(setting, batch)()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", help=f"to compare with dense: {', '.join(SETTINGS)} (default all)")
    parser.add_argument("--repeats", type=int, default=20 if on_gpu else 3, help="steps, after one that does not count")
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 32, help="images per step")
    parser.add_argument("--memory", action="store_true", help="print only the peak memory of one setting or `dense`")
    args = parser.parse_args()
    machine = describe()
    torch.set_num_threads(1)
    if args.memory:
        print(measure_memory(args.settings[0], args.batch))
        return
    print(f"{machine}; batch {args.batch}, {args.repeats} repeats" + ("" if on_gpu else ", CPU time of one thread"))
    names = ["dense", *(args.settings or SETTINGS)]
    # Before the timing: a process inherits the peak of the one that starts it.
    memory = {name: peak_memory(name, args.batch) for name in names}
    steps = {name: step(name, args.batch) for name in names}
    clock = time.perf_counter if on_gpu else time.process_time
    seconds = medians(steps, repeats=args.repeats, warm_up=1, clock=clock)
    for name in names:
        print(
            f"{name:18}{seconds[name]:7.3f} s, {seconds[name] / seconds['dense']:.2f} of dense   "
            f"{memory[name]:5.2f} GiB, {memory[name] / memory['dense']:.2f} of dense"
        )


if __name__ == "__main__":
    main()
