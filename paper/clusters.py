"""Where a sweep's jobs run, through submitit: on this machine, so many at a time, or in arrays of a Slurm cluster."""

import contextlib
import getpass
import io
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lab.cli import UserError

from .job import Job

_PARTS = 100  # of a run whose Slurm jobs end before it does
_HERE = Path(__file__).resolve().parent.parent
_YEAR = 60 * 24 * 365  # in minutes
# The states of Slurm's jobs that will not run again.
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip

_WAITING = {"CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _submitit():
    try:
        import submitit
    except ImportError:
        raise UserError("this needs the package submitit: pip install -e '.[sweep]' installs it") from None
    return submitit


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Let processes that are started find this package, and be deaf to Ctrl-C.

    The sweep alone hears it, and stops them in good order.
    """
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{_HERE}{os.pathsep}{path}" if path else str(_HERE)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        del os.environ["PYTHONPATH"]
        os.environ |= {"PYTHONPATH": path} if path else {}


class Local:
    """Runs jobs on this machine.

    Args:
        folder: gets what submitit writes.
        jobs: how many at a time; 0 means one on each GPU or, where there is none, on each core.
    """

    seconds = 0.5
    """The seconds between two looks at the jobs."""
    threads: int
    """The threads of each job."""

    def __init__(self, folder: Path, jobs: int = 0):
        devices = gpus()
        jobs = jobs or len(devices) or cores()
        self.words = f"{jobs} at a time on {f'{len(devices)} GPUs' if devices else f'{cores()} cores'} of this machine"
        self.threads = max(1, cores() // jobs)
        self._free: list[str | None] = [devices[slot % len(devices)] if devices else None for slot in range(jobs)]
        self._taken: dict[Any, str | None] = {}
        self._executor = _submitit().LocalExecutor(folder)
        self._executor.update_parameters(timeout_min=_YEAR, stderr_to_stdout=True)

    @property
    def room(self) -> int:
        """How many more jobs can be submitted now."""
        return len(self._free)

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Start the jobs, no more than there is room for; each has a GPU of its own, or its share of the cores."""
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> Any:
        device = self._free.pop(0)
        environment = {"OMP_NUM_THREADS": str(self.threads)} | ({"CUDA_VISIBLE_DEVICES": device} if device else {})
        with _starting():
            handle = self._executor.submit(replace(job, environment={**job.environment, **environment}))
        self._taken[handle] = device
        return handle

    def ended(self, handles: Iterable[Any]) -> list[Any]:
        """Return those of the jobs that have ended, whichever way."""
        found = [handle for handle in handles if handle.done()]
        for handle in found:
            if handle in self._taken:
                self._free.append(self._taken.pop(handle))
        return found

    def waiting(self, handle: Any) -> None:
        """Return None, as all jobs begin at once."""

    def cancel(self, handles: Iterable[Any]) -> None:
        """Ask the jobs to stop; `ended` says when they have."""
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(handle.job_id), signal.SIGTERM)


class Slurm:
    """Runs jobs as an array of a Slurm cluster, with which this machine shares its files.

    A job whose time is up goes back into the queue, and its run resumes in the next part.

    Args:
        folder: gets what submitit writes.
        jobs: how many at a time; 0 leaves it to Slurm.
        options: of `sbatch`, by the names that submitit has for them.
    """

    seconds = 5.0
    """The seconds between two looks at the queue."""

    room = 1_000_000

    def __init__(self, folder: Path, jobs: int, options: dict[str, Any]):
        if "%" in str(folder):
            raise UserError(f"{folder}: Slurm reads a % in names of files as its own; use another --results")
        try:
            self._executor = _submitit().SlurmExecutor(folder, max_num_timeout=_PARTS)
        except RuntimeError:
            raise UserError("there is no Slurm here: srun is not installed; --cluster local needs none") from None
        parallel: dict[str, Any] = {"array_parallelism": jobs or self.room}
        if "cpus_per_task" in options:  # which srun does not take over from sbatch since Slurm 22.05
            parallel["srun_args"] = ["--cpus-per-task", str(options["cpus_per_task"])]
        self._executor.update_parameters(job_name="paper", stderr_to_stdout=True, **parallel, **options)
        self.words = "in an array of Slurm's"
        self._waiting: dict[str, str] = {}

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Put the jobs into the queue, as one array.

        Raises:
            UserError: if Slurm refuses it.
        """
        try:
            with _starting(), contextlib.redirect_stderr(io.StringIO()):
                handles = self._executor.submit_array(jobs)
        except (_submitit().core.utils.FailedJobError, OSError) as error:
            raise UserError(f"Slurm does not take the jobs: {_said(str(error))}") from None
        self.words = f"in Slurm's array {handles[0].job_id.split('_')[0]}"
        return handles

    def ended(self, handles: Iterable[Any]) -> list[Any]:
        """Return those of the jobs that are not in the queue any more, whichever way they have left it."""
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %r", "--user", getpass.getuser()]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):  # it does not answer just now
            return []
        lines = [line.split(maxsplit=2) for line in listed.splitlines() if line.strip()]
        states = {job: state for job, state, _ in lines}
        self._waiting = {job: "" if why == "None" else why for job, state, why in lines if state in _WAITING}
        return [handle for handle in handles if states.get(handle.job_id, "COMPLETED") in _ENDED]

    def waiting(self, handle: Any) -> str | None:
        """Return why a job had not begun when `ended` looked last, in Slurm's word, or ""; None if it had."""
        return self._waiting.get(handle.job_id)

    def cancel(self, handles: Iterable[Any]) -> None:
        """Ask the jobs to stop; `ended` says when they have."""
        if ids := [handle.job_id for handle in handles]:
            subprocess.run(["scancel", *ids], capture_output=True, timeout=60)


def _said(output: str) -> str:
    """Return why `sbatch` refuses a job, from what it prints, and where to look for what would be taken."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith('Try "sbatch')]
    said = lines[-1].removeprefix("sbatch: ").removeprefix("error: ") if lines else "it does not say why"
    what = "the partitions, with their time and what a node has: cores, megabytes, GPUs"
    return f"{said}; `sinfo -o '%P %l %c %m %G'` lists {what}" if "submission failed" in said else said
