"""Where and how a run computes: device, seed, precision, compilation, and several processes.

Started by `torchrun`, every process works on its share of each batch and gradients are averaged, so a run gives what a
single process gives for the same global batch, up to rounding. Batch normalization is the exception: each process
normalizes with the statistics of its own share, and the running statistics are those of process 0.
"""

import ctypes
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .cli import UserError

Result = TypeVar("Result")

_AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Computing:
    """What `flags.Computing` asks for, ready to use. `start` builds it."""

    device: torch.device
    amp: torch.dtype | None
    compile: bool
    memory_format: torch.memory_format
    rank: int = 0
    world_size: int = 1
    automatic: bool = False
    """Whether the memory format may depend on the network."""
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self):
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def describe(self) -> str:
        """Return in words on what the network runs, in which precision and order of memory, and whether compiled."""
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        names = {kind: f"{name} by autocast" for name, kind in _AMP.items()}
        precision = names[self.amp] if self.amp else "float32"
        order = ", channels-last" if self.memory_format == torch.channels_last else ""
        return f"{self.device}{processes}, {precision}{order}{', compiled' if self.compile else ''}"

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, self.amp) if self.amp else nullcontext()

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device and memory format, in place, and return it.

        Convolutions work in the format of their kernels, whatever that of the images is.
        """
        if self.automatic and any(map(_is_narrow_and_strided, model.modules())):
            self.memory_format = torch.contiguous_format
        return model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return what to call in place of `model`: the same parameters, distributed and compiled if asked for."""
        if self.world_size > 1:
            model = nn.parallel.DistributedDataParallel(model)
        return cast(nn.Module, torch.compile(model)) if self.compile else model

    def on_main(self, call: Callable[[], Result]) -> Result:
        """Return, in every process, what `call()` returns in the main process, or raise there what it raises."""
        box: list = [None, None]
        if self.is_main:
            try:
                box[0] = call()
            except (UserError, SystemExit) as error:
                box[1] = error
        if self.world_size > 1:
            dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def on_all(self, call: Callable[[], object]) -> None:
        """Call `call()` in every process, and raise in all of them the `UserError` that the first of them raises."""
        mistake: UserError | None = None
        try:
            call()
        except UserError as error:
            mistake = error
        mistakes = [mistake]
        if self.world_size > 1:
            mistakes = [None] * self.world_size
            dist.all_gather_object(mistakes, mistake)
        for found in mistakes:
            if found is not None:
                raise found

    def main_first(self, call: Callable[[], Result]) -> Result:
        """Return what `call()` returns, which the other processes call when the main process is done.

        What it downloads or leaves in a cache is there for them, as far as they see the same disk.
        """
        done: list[Result] = []
        self.on_main(lambda: done.append(call()))
        return done[0] if done else call()

    def close(self) -> None:
        """End the process group, if there is one."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values


def start(args: Any) -> Computing:
    """Seed everything and return the device, precision and processes that the flags ask for.

    Raises:
        UserError: for a device that is not there.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = _device(args.device, int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    random.seed(args.seed)
    numpy.random.seed(args.seed % 2**32)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    asked = getattr(args, "channels_last", False)
    automatic = asked is None and device.type == "cpu"
    memory_format = torch.channels_last if asked or automatic else torch.contiguous_format
    compiled = getattr(args, "compile", False)
    return Computing(device, _AMP[args.amp], compiled, memory_format, rank, world_size, automatic)


def _is_narrow_and_strided(module: nn.Module) -> bool:
    """Tell whether `module` is a convolution in whose backward pass oneDNN has crashed in channels-last order."""
    kernel, stride, channels = (getattr(module, name, None) for name in ("kernel_size", "stride", "in_channels"))
    return kernel == (1, 1) and stride not in (None, 1, (1, 1)) and isinstance(channels, int) and channels < 8


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it, where the C library can be told so (glibc).

    Otherwise every large array, such as the scores of a whole vocabulary, is made of fresh pages that the system has to
    clear first, which can take longer than the computation that fills it. The process stays as large as it ever was.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # glibc's names for them are M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def _device(name: str, local_rank: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if name in ("auto", "cuda"):
        index = local_rank
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if processes > count > 0:  # all of them notice
            raise UserError(f"{processes} processes need as many GPUs, {count} found; start fewer, or use --device cpu")
    elif name.removeprefix("cuda:").isdecimal():
        index = int(name.removeprefix("cuda:"))
    else:
        raise UserError(f"--device must be auto, cpu, cuda or the number of a GPU, not {name}")
    if index >= count:
        raise UserError(f"--device {name} is not there: {count} GPUs found; use --device cpu or auto")
    return torch.device("cuda", index)


def random_state() -> dict:
    """Return the states of all random generators, in types that a weights-only load accepts."""
    name, keys, *rest = cast(tuple, numpy.random.get_state(legacy=True))
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": (name, keys.tolist(), *rest)}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict) -> None:
    """Restore what `random_state` returned; the state of GPUs only where their number is the same."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    if len(state.get("cuda", ())) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
