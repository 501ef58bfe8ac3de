"""An interpreter that has imported PyTorch already, for sweeps of many short runs on this machine.

To import all that a trainer needs takes longer than a quick run trains. Here one process imports it once, and forks for
each program; the programs themselves know nothing of it. Only the standard library is imported before that, as this
file is also what scripts call in the place of Python.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

MODULES = ("torch._dynamo", "torch.utils.tensorboard", "sklearn.datasets", "sacrebleu", "lab.training")
"""What is imported once; `torch._dynamo`, as every optimizer imports it sooner or later."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interpreter(threads: int) -> Iterator[str]:
    """Yield a path that scripts can call in the place of Python, as long as the context lasts.

    Args:
        threads: of each program.
    """
    with tempfile.TemporaryDirectory(prefix="paper-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(64)
        listener.set_inheritable(True)
        python = Path(folder) / "python"
        words = (sys.executable, __file__, "--ask", f"{folder}/socket")
        python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        python.chmod(0o700)
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(listener.fileno())], pass_fds=[listener.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        try:
            yield str(python)
        finally:
            server.terminate()
            server.wait()


def ask(address: str, argv: list[str]) -> int:
    """Let the server run a program, with this process's folder, environment and streams; return its exit status.

    Signals that this process gets are passed on.
    """
    request = json.dumps({"argv": argv, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until it is known who shall get them
        connection.connect(address)
        socket.send_fds(connection, [b"{"], [0, 1, 2])
        connection.sendall(request[1:])
        connection.shutdown(socket.SHUT_WR)
        answers = connection.makefile("r")
        program = int(answers.readline() or 0)
        for number in _SIGNALS:
            signal.signal(number, lambda number, _: os.kill(program, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return int(answers.readline() or 1)  # nothing, if the program was killed


def serve(listener: socket.socket) -> None:
    """Import what programs need, then fork for each of them, until the process that has started this one is gone."""
    parent = os.getppid()
    for name in MODULES:
        with contextlib.suppress(ImportError):  # the programs that need it will say so
            importlib.import_module(name)
    while os.getppid() == parent:
        with contextlib.suppress(ChildProcessError):  # there is none
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if select.select([listener], [], [], 1)[0]:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """Run the program that is asked for, in this process, and end it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if whoever began all this was deaf to it
    status = 1
    try:
        part, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        parts = [part]
        while part := connection.recv(1 << 16):
            parts.append(part)
        connection.sendall(f"{os.getpid()}\n".encode())
        status = _run(streams, **json.loads(b"".join(parts)))
    finally:
        with contextlib.suppress(OSError):  # nobody waits for it any more
            connection.sendall(f"{status}\n".encode())
        os._exit(status)  # without the end of the process that was forked


def _run(streams: list[int], argv: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run a program as Python does; return its exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    sys.path[0] = os.path.dirname(os.path.abspath(argv[0]))
    try:
        runpy.run_path(argv[0], run_name="__main__")
        return 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for written in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                written.flush()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not the folder of this file
        serve(socket.socket(fileno=int(sys.argv[2])))
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
