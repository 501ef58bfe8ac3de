"""What a folder tells of the run that has been at work there: its files and its arguments."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from .cli import UserError


def holds_run(folder: Path, files: Iterable[str]) -> bool:
    """Tell whether there are files of a run in `folder`; `files` as in `Run.open`."""
    return bool(files_of_run(folder, files))


def files_of_run(folder: Path, files: Iterable[str]) -> list[Path]:
    """Return the files of a run in `folder`: those that every run has, and `files`, which may be patterns."""
    return [path for name in ("args.json", "results.json", "events.out.*", *files) for path in folder.glob(name)]


def is_in(path: Path | None, folder: Path) -> bool:
    """Return whether there is a `path` and it lies directly in `folder`, however the two are spelled.

    A link in the folder to a file elsewhere does.
    """
    return path is not None and os.path.realpath(folder) in (os.path.realpath(path.parent), _parent_of_target(path))


def _parent_of_target(path: Path) -> str:
    return os.path.dirname(os.path.realpath(path))


def arguments_of(folder: Path, instead: str) -> dict:
    """Return the arguments of the run in a folder, {} if there is none.

    Raises:
        UserError: if they cannot be read; `instead` says what would be right.
    """
    path = folder / "args.json"
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except NotADirectoryError:  # which opening it says better
        return {}
    except (OSError, ValueError, RecursionError):
        old = None
    if not isinstance(old, dict):
        raise UserError(f"{path} cannot be read; {instead}")
    return old
