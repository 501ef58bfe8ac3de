"""Folders of files that are replaced together."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.cli import FULL, UserError

# New files, all there, on their way into the folder; and the one among them that names the old ones to be removed.
_COMING, _GOING = ".coming", ".going"


@contextmanager
def whole(folder: Path, superseded: Callable[[Path], Iterable[str]] = lambda new: ()) -> Iterator[Path]:
    """Give a temporary folder, whose files come into `folder` once they are all there; other files stay.

    Stopped at any moment, the folder holds the old files alone, or is told from a whole one by `check_whole`. The next
    call brings in what was complete.

    Args:
        folder: is made, with the folders above it, if need be.
        superseded: looks at the finished temporary folder, returns the names of the old files that must go, and may
            raise to keep `folder` as it was.

    Raises:
        UserError: if a file cannot be written.
        OSError: if the disk is full, with the name `folder`.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write into {folder}: it is no folder")
    try:
        _bring_in(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, because files can only be renamed within a file system.
        temporary = Path(tempfile.mkdtemp(dir=folder if folder.is_dir() else folder.parent, prefix=".unfinished."))
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.filename}: {error.strerror}") from None
    try:
        yield temporary
        going = sorted(superseded(temporary))
        if folder.exists():
            (temporary / _GOING).write_text("".join(f"{name}\n" for name in going), encoding="utf-8")
            temporary.rename(folder / _COMING)
            _bring_in(folder)
        else:
            temporary.chmod(0o755)
            temporary.rename(folder)
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(folder)) from None
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_whole(folder: Path) -> None:
    """Raise a `UserError` if `folder` holds old and new files, because the program that replaced them was stopped."""
    if (folder / _COMING).exists():
        raise UserError(f"{folder}: preprocess.py was stopped while it put data here; run it again")


def _bring_in(folder: Path) -> None:
    """Replace the old files by the new ones that wait to come in, if there are any."""
    coming = folder / _COMING
    if not coming.is_dir():
        return
    going = coming / _GOING
    for name in going.read_text(encoding="utf-8").splitlines() if going.exists() else ():
        (folder / name).unlink(missing_ok=True)
    for path in sorted(coming.iterdir()):
        if path != going:
            os.replace(path, folder / path.name)
    going.unlink(missing_ok=True)
    coming.rmdir()
