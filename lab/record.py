"""What a run leaves in its folder, and what it shows while it runs.

A folder holds `args.json`, TensorBoard events, the trainer's checkpoints and, once the run is finished, `results.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint import save_json
from .cli import UserError

# These may differ between the parts of one run: they change how it is run, not what it computes.
_FREE = {"resume", "overwrite", "device", "workers", "print_freq", "data_dir", "strict"}


def open_folder(folder: Path, args: argparse.Namespace, *, resume: bool, overwrite: bool, files: Iterable[str]) -> None:
    """Check that a run with these arguments may write into `folder`, and make the folder ready.

    Args:
        files: names (globs) of the run's files; with `overwrite` those of an earlier run are removed.

    Raises:
        UserError: if the folder cannot be written, or holds a run and neither `resume` (with the same arguments) nor
            `overwrite` is set. Nothing has been changed then.
    """
    found = earlier_run(folder, files)
    if found and not (resume or overwrite):
        raise UserError(f"{folder} already holds a run; continue it with --resume auto, replace it with --overwrite, or name another folder")  # fmt: skip # noqa: E501
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write into {folder}")
    if overwrite and not resume:
        for path in found:
            path.unlink()
    save_json(folder / "args.json", vars(args))


def earlier_run(folder: Path, files: Iterable[str]) -> list[Path]:
    """Return the files of an earlier run in `folder`."""
    return [path for pattern in ("args.json", "results.json", "events.out.*", *files) for path in folder.glob(pattern)]


def check_same_arguments(folder: Path, args: argparse.Namespace) -> None:
    """Check that the run in `folder` was started with the same arguments.

    Raises:
        UserError: if not; it names the first difference.
    """
    try:
        old = json.loads((folder / "args.json").read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        raise UserError(f"{folder / 'args.json'} cannot be read") from None
    for name, value in vars(args).items():
        if name not in _FREE and old.get(name) != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{folder} holds a run with {flag} {old.get(name)}, not {value}; use another folder or --overwrite")  # fmt: skip # noqa: E501


class Record:
    """TensorBoard events, `results.json` and console lines of one run. Only the main process writes.

    Args:
        folder: the run's folder.
        is_main: whether this process writes at all.
        first_epoch: events of this epoch and later, left by an interrupted part of the run, are hidden.
    """

    def __init__(self, folder: Path, is_main: bool, first_epoch: int = 0):
        self.folder, self.is_main = folder, is_main
        self._started = time.time()
        self._events = None
        if is_main:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed to parse flags

            self._events = SummaryWriter(str(folder), purge_step=first_epoch if first_epoch else None)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Log `values` by tag at `step`, and make them durable."""
        if self._events:
            for tag, value in values.items():
                self._events.add_scalar(tag, value, step)
            self._events.flush()

    def line(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self.is_main:
            tqdm.write(text)
            sys.stdout.flush()

    def results(self, values: dict) -> None:
        """Write `results.json`: `values`, then versions, source revision and time taken."""
        if self.is_main:
            environment = {
                "seconds": round(time.time() - self._started, 1),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine(),  # fmt: skip # noqa: E501
                "revision": _revision(),
            }
            save_json(self.folder / "results.json", {**values, **environment})

    def close(self) -> None:
        """Close the event file."""
        if self._events:
            self._events.close()


def progress(batches: Iterable, total: int, label: str, is_main: bool) -> tqdm:
    """Return `batches` under a progress bar on standard error, which is silent when that is not a terminal."""
    return tqdm(batches, total=total, desc=label, leave=False, disable=None if is_main else True, dynamic_ncols=True)


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
