"""What a queue runs: one trial of a setting, in a process that may be on another machine.

Imports next to nothing, as it is loaded anew for every trial.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from lab.lock import Busy, Lock

_PATIENCE = 60  # seconds that a script has to end after an interrupt


class _Stopped(BaseException):
    """SIGTERM has come."""


@dataclass
class Job:
    """Runs a script, unless another process runs the same one, and stops it in good order.

    At SIGTERM, by which queues cancel, it interrupts the script as Ctrl-C does and waits for its end. Before the time
    of a Slurm job is up, submitit calls `checkpoint` and puts the job into the queue again.
    """

    script: str
    """Text for bash."""
    lock: Path
    """The folder whose lock is held meanwhile. It is removed at the end, as nothing is written into it."""
    environment: dict[str, str]
    """Variables of the script, beside those of this process."""
    _process: subprocess.Popen | None = field(default=None, repr=False)

    def __call__(self) -> int | None:
        """Return the script's exit status; None if it was not run, since another process does so."""
        signal.signal(signal.SIGTERM, _stop)
        try:
            lock = Lock(self.lock)
        except Busy:
            return None
        try:
            return self._run()
        except _Stopped:
            self._interrupt()
            return 128 + signal.SIGTERM
        finally:
            lock.release()

    def _run(self) -> int:
        environment = {**os.environ, **self.environment}
        if "SLURM_CPUS_PER_TASK" in environment:
            environment["OMP_NUM_THREADS"] = environment["SLURM_CPUS_PER_TASK"]
        # A session of its own, so that the script gets no signals but those that are meant for it. What it prints is in
        # the logs of its runs, too.
        self._process = subprocess.Popen(
            ["bash", "-c", self.script, "paper-run"], env=environment, stdout=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=_set_signals,
        )  # fmt: skip
        while (status := self._process.poll()) is None:
            time.sleep(0.1)
        return status

    def _interrupt(self) -> None:
        """Interrupt the script with all that it has started, and wait until all that has ended."""
        if self._process is None:
            return
        group, begun, interrupted = self._process.pid, time.monotonic(), False
        with contextlib.suppress(ProcessLookupError):  # there is no process in the group any more
            while (waited := time.monotonic() - begun) < _PATIENCE:
                ended = _has_ended(group)
                # Slurm sends SIGTERM to all processes. Those that end by it should not be interrupted at that.
                if waited > 0.5 and not (ended or interrupted):
                    os.killpg(group, signal.SIGINT)
                    interrupted = True
                os.killpg(group, 0)
                time.sleep(0.05)

    def checkpoint(self):
        """Stop, and return what is to be run in the next part: the same, as the runs resume by themselves."""
        from submitit.helpers import DelayedSubmission

        print("stopping, to go on in the next part of this job", file=sys.stderr)
        self._interrupt()
        return DelayedSubmission(Job(self.script, self.lock, self.environment))


def _has_ended(child: int) -> bool:
    """Tell whether a child has ended. Not by its `Popen`, whose lock the interrupted part of this thread may hold."""
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:
        return True


def _set_signals() -> None:
    """Undo what makes this process deaf to Ctrl-C (`clusters`), as a shell does to those in the background.

    And ignore the signal that a Slurm job's time is nearly up. All its processes get it; `checkpoint` is to act on it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _stop(*_) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped
