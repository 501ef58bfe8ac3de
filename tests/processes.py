"""Starts the programs of an experiment's folder in processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

# What every results.json begins with.
HEAD = (
    "study", "network", "data", "method", "metric", "best", "final", "epochs", "seed", "rank scale", "parameters",
    "dense parameters", "ratio", "decay budget", "validation", "seconds", "seconds per epoch", "peak memory", "machine",
    "versions", "revision",
)  # fmt: skip
VARYING = ("seconds", "seconds per epoch", "peak memory", "revision")
"""Those that differ between two runs with equal numbers."""

REPOSITORY = Path(__file__).resolve().parent.parent


def environment(folder: str, **variables: str) -> dict[str, str]:
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
