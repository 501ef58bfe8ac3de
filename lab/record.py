"""What a run leaves in its folder, and what it shows while it runs.

A folder holds `args.json`, TensorBoard events, the trainer's checkpoints and, once the run is finished, `results.json`.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint import save_json
from .cli import UserError, printable

# These may differ between the parts of one run: they change how it is run, not what it computes.
_FREE = {"resume", "auto_resume", "load_path", "overwrite", "device", "workers", "print_freq", "save_every", "strict"}
_FREE |= {"data_dir", "save_dir", "log_dir"}


def find_checkpoint(
    args: argparse.Namespace,
    folder: Path,
    name: str,
    files: Iterable[str],
    request: str | None = None,
    free: Collection[str] = (),
) -> Path | None:
    """Return the checkpoint to continue from, or None to start afresh.

    Args:
        args: parsed flags, among them `overwrite`.
        files: names of the files of a run, beside those that every run has.
        request: a file; `auto`, for the file `name` in `folder`, where a run with the same arguments may have left it;
            or nothing. By default the flag `resume`.
        free: arguments that may differ as well. Where they do, a finished run is continued, too: it may be longer now.

    Raises:
        UserError: if `folder` holds a run that is not to be continued or replaced, or one with other arguments; if
            the file is not there.
        SystemExit: with status 0, if the run is finished already.
    """
    request = args.resume if request is None else request
    if request == "auto":
        old = _arguments(folder, args)
        if old:
            check_same_arguments(old, args, f"{folder} holds", free)
        elif _files_of_run(folder, files):
            raise UserError(f"{folder} holds files of a run, but no args.json that says which; {_instead(args)}")
        changed = any(old.get(name) != _plain(getattr(args, name)) for name in free)
        finished = (folder / "results.json").exists()
        if finished and not changed:
            print(f"{folder} holds this run, finished")
            raise SystemExit(0)
        if (folder / name).exists():
            return folder / name
        if finished:
            raise UserError(f"{folder} holds this run, finished, without {name} to continue it; {_instead(args)}")
        begun = old.get("load_path") or old.get("resume")
        if isinstance(begun, str) and begun not in ("", "auto"):
            raise UserError(f"{folder} has no checkpoint yet of its run, which began with {begun}: start it again so")
        return None
    source = Path(request) if request else None
    if source and not source.is_file():
        raise UserError(f"{'--load_path' if getattr(args, 'load_path', '') else '--resume'} {source}: no such file")
    automatic = "--auto-resume" if "auto_resume" in args else "--resume auto"
    if _files_of_run(folder, files) and not args.overwrite and not is_in(source, folder):
        raise UserError(
            f"{folder} already holds a run: continue it with {automatic}, "
            "replace it with --overwrite, or use another folder"
        )
    return source


def open_folder(folder: Path, args: argparse.Namespace, *, keep: bool, files: Iterable[str]) -> None:
    """Create `folder` and write `args.json` into it.

    Args:
        keep: leave what an earlier part of the run wrote, except its results; otherwise an earlier run's files are
            removed.

    Raises:
        UserError: if the folder cannot be written.
    """
    str(folder.absolute()).encode()  # an error where the name is not UTF-8: TensorBoard could not write there
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [folder / "results.json"] if keep else _files_of_run(folder, files):
            path.unlink(missing_ok=True)
        save_json(folder / "args.json", plain(args))
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None


def plain(args: argparse.Namespace) -> dict:
    """Return parsed flags by name, in types that JSON and checkpoints can hold."""
    return {name: _plain(value) for name, value in vars(args).items()}


def holds_run(folder: Path, files: Iterable[str]) -> bool:
    """Tell whether there are files of a run in `folder`; `files` as in `find_checkpoint`."""
    return bool(_files_of_run(folder, files))


def _files_of_run(folder: Path, files: Iterable[str]) -> list[Path]:
    return [path for name in ("args.json", "results.json", "events.out.*", *files) for path in folder.glob(name)]


def is_in(path: Path | None, folder: Path) -> bool:
    """Return whether there is a `path` and it lies directly in `folder`, however the two are spelled."""
    return path is not None and path.resolve().parent == folder.resolve()


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _instead(args: argparse.Namespace) -> str:
    return "use another folder" + (" or --overwrite" if "overwrite" in args else "")


def _arguments(folder: Path, args: argparse.Namespace) -> dict:
    """Return the arguments of the run in `folder`, {} if there is none."""
    try:
        return dict(json.loads((folder / "args.json").read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        raise UserError(f"{folder / 'args.json'} cannot be read; {_instead(args)}") from None


def check_same_arguments(old: dict, args: argparse.Namespace, where: str, free: Collection[str] = ()) -> None:
    """Compare arguments with those of the run that is to be continued.

    Args:
        old: its arguments, as `plain` gives them.
        where: what begins the message, such as "FOLDER holds".
        free: arguments that may differ, besides those that change nothing.

    Raises:
        UserError: if others do.
    """
    for name, value in vars(args).items():
        if name not in _FREE and name not in free and old.get(name) != _plain(value):
            raise UserError(
                f"{where} a run with {name} {old.get(name)}, not {_plain(value)}: "
                "give the same arguments to continue it, or use another folder"
            )


class Record:
    """TensorBoard events, `results.json` and console lines of one run. Only the main process writes.

    Args:
        folder: the run's folder.
        is_main: whether this process writes at all.
        first_epoch: events of this epoch and later, left by an interrupted part of the run, are hidden.
        seconds: what earlier parts of the run took.
    """

    def __init__(self, folder: Path, is_main: bool, first_epoch: int = 0, seconds: float = 0.0):
        self.folder, self.is_main = folder, is_main
        self._started = time.time() - seconds
        self._events = None
        if is_main:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed to parse flags

            _wait_for_a_later_name(folder)
            self._events = SummaryWriter(str(folder), purge_step=first_epoch if first_epoch else None)

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, its earlier parts included."""
        return time.time() - self._started

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Log `values` by tag at `step`, and make them durable."""
        if self._events:
            for tag, value in values.items():
                self._events.add_scalar(tag, value, step)
            self._events.flush()

    def line(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self.is_main:
            tqdm.write("\n".join(map(printable, text.split("\n"))))
            sys.stdout.flush()

    def results(self, values: dict) -> None:
        """Write `results.json`: `values`, then versions, source revision and time taken."""
        if self.is_main:
            environment = {
                "seconds": round(self.seconds, 1),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
                "revision": _revision(),
            }
            save_json(self.folder / "results.json", {**values, **environment})

    def close(self) -> None:
        """Close the event file."""
        if self._events:
            self._events.close()


def progress(batches: Iterable | None, total: int | None, label: str, is_main: bool, done: int = 0) -> tqdm:
    """Return `batches` under a progress bar on standard error, which is silent when that is not a terminal.

    Args:
        batches: None for a bar that is moved by hand.
        total: None if nobody knows.
        done: where the bar begins, which says nothing about the time left.
    """
    options = {"leave": False, "disable": None if is_main else True, "dynamic_ncols": True}
    return tqdm(batches, total=total, initial=done, desc=label, **options)


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until event files are named after a later second than those in `folder`, which are read in this order."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*.*")]
    while seconds and int(time.time()) == max(seconds):
        time.sleep(0.01)


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
