"""What the tests of all programs need: what programs say and leave on disk, and processes of their own."""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch

from lab import checkpoint
from lab.cli import launch

REPOSITORY = Path(__file__).resolve().parents[1]

# What every results.json begins with, and what of it differs between two runs with equal numbers.
HEAD = (
    "study", "network", "data", "method", "metric", "best", "final", "epochs", "seed", "rank scale", "parameters",
    "dense parameters", "ratio", "decay budget", "validation", "seconds", "seconds per epoch", "peak memory", "machine",
    "versions", "revision",
)  # fmt: skip
VARYING = ("seconds", "seconds per epoch", "peak memory", "revision")


# What is left on disk


def snapshot(*folders: Path) -> dict[Path, bytes | None]:
    """Return what is in the folders, with the contents of files, but for decoded images in a folder `cache`."""
    paths = (path for folder in folders for path in folder.rglob("*") if "cache" not in path.relative_to(folder).parts)
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(paths)}


def results(folder: Path) -> dict:
    """Return the `results.json` of a run's folder."""
    return json.loads((folder / "results.json").read_text())


def events(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and values of every tag in the TensorBoard events of a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    logged = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    return {tag: ([event.step for event in found], [event.value for event in found]) for tag, found in logged.items()}


# Programs in this process


def load_program(path: str) -> ModuleType:
    """Return the program at `path`, from the repository's root, as a module; its name may be none of a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem.replace("-", "_"), REPOSITORY / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_line(
    main: Callable[[], object], prog: str, capture, status: int = 2, *, printed: bool = False, warnings: int = 0
) -> str:
    """Return the one line on standard error with which `main` ends the program `prog`.

    Args:
        main: is called as programs call it.
        capture: the fixture `capsys` or `capfd`.
        status: the exit status; 2 says that the user has made a mistake.
        printed: whether anything may stand on standard output.
        warnings: number of lines of warning before.
    """
    capture.readouterr()
    with pytest.raises(SystemExit) as stop:
        launch(main, prog)
    captured = capture.readouterr()
    *before, line = captured.err.splitlines(keepends=True)
    assert line.startswith(f"{prog}: error: ") and line.endswith("\n"), captured.err
    assert len(before) == warnings and all(other.startswith(f"{prog}: warning: ") for other in before), captured.err
    assert printed or captured.out == ""
    assert stop.value.code == status
    return line


def assert_mistake(
    main: Callable[[], object], prog: str, capture, fragments: Iterable[str], *folders: Path, **more
) -> None:
    """Assert that `main` ends with `one_line`, in which the fragments stand, and changes nothing in the folders.

    A fragment may be several, parted by `|`, of which one stands there; `more` goes to `one_line`.
    """
    before = snapshot(*folders)
    line = one_line(main, prog, capture, **more)
    for fragment in fragments:
        assert any(choice in line for choice in fragment.split("|")), line
    assert snapshot(*folders) == before


class Stop(Exception):
    """Stands for a kill at a chosen moment."""


@contextlib.contextmanager
def stopped_at_write(name: str, occasion: int) -> Iterator[None]:
    """Let a run stop, by `Stop`, when a file of this name is about to be written for the so-manieth time."""
    write_whole, calls = checkpoint.write_whole, []

    def stopping(path, write):
        calls.append(path.name)
        if path.name == name and calls.count(name) == occasion:
            raise Stop
        write_whole(path, write)

    with mock.patch.object(checkpoint, "write_whole", stopping), pytest.raises(Stop):
        yield


def asked(**values) -> argparse.Namespace:
    """Return the flags of factorization as a trainer's parser leaves them, all at their defaults but for `values`."""
    flags = {"rank_scale": 0.0, "target_ratio": 0.0, "strict": False, "spectral": False, "rank_path": "auto"}
    return argparse.Namespace(**{**flags, "kaiming": False, **values})


# Programs in processes of their own


def environment(folder: str = "", **variables: str) -> dict[str, str]:
    """Return the environment of a process that can import the repository and what is in `folder`; one thread."""
    paths = (str(REPOSITORY), str(REPOSITORY / folder))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}


def torchrun(folder: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a script of `folder`, or `-m MODULE`, with what follows, in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment(folder), capture_output=True, text=True, timeout=500)


def be(main: Callable[[list[str]], object], prog: str, argv: list[str], log: str | None = None) -> None:
    """Be the program `prog` with these arguments, on one thread; what it prints goes to the end of `log`, if given."""
    if log:
        sys.stdout = sys.stderr = open(log, "a", buffering=1)
    torch.set_num_threads(1)
    launch(lambda: main(argv), prog)


def start(
    command_line: Callable[[list[str], str], None], argv: list[str], log: Path, steps: float = 0.0
) -> multiprocessing.Process:
    """Call `command_line(argv, log)` in a process of its own, which is quick to start, as its imports are done.

    With `steps` it dies at once, as by SIGKILL, when it has made so many backward passes; of a fraction, that part
    of the time between the last two later, which may be anywhere: in a step, in validation, in a file.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([command_line.__module__, "torch.utils.tensorboard"])
    process = context.Process(target=_mortal, args=(command_line, argv, str(log), steps))
    process.start()
    return process


def killed(command_line: Callable[[list[str], str], None], argv: list[str], log: Path, steps: float) -> None:
    """Start the program as `start` does and see it die."""
    process = start(command_line, argv, log, steps)
    process.join(300)
    assert process.exitcode == -signal.SIGALRM, log.read_text()


def _mortal(command_line: Callable[[list[str], str], None], argv: list[str], log: str, steps: float) -> None:
    backward, whole, moments = torch.Tensor.backward, int(steps), []

    def counted(*arguments, **options):
        backward(*arguments, **options)
        moments.append(time.perf_counter())
        if len(moments) == whole:
            # The signal has no handler here, so that the kernel ends the process wherever it is.
            interval = moments[-1] - moments[-2] if whole > 1 else 0.0
            signal.setitimer(signal.ITIMER_REAL, max(interval * (steps - whole), 1e-6))

    with mock.patch.object(torch.Tensor, "backward", counted):
        command_line(argv, log)
