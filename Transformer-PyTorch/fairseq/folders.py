"""Folders of files that are replaced together."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.cli import FULL, UserError


@contextmanager
def whole(folder: Path, check: Callable[[Path], object] = lambda new: None) -> Iterator[Path]:
    """Give a temporary folder, whose files come into `folder` once they are all there; other files stay.

    Args:
        folder: is made, with the folders above it, if need be.
        check: looks at the finished temporary folder, and may raise to keep `folder` as it was.

    Raises:
        UserError: if a file cannot be written.
        OSError: if the disk is full, with the name `folder`.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write into {folder}: it is no folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, because files can only be renamed within a file system.
        temporary = Path(tempfile.mkdtemp(dir=folder if folder.is_dir() else folder.parent, prefix=".unfinished."))
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.filename}: {error.strerror}") from None
    try:
        yield temporary
        check(temporary)
        if folder.exists():
            for path in sorted(temporary.iterdir()):
                os.replace(path, folder / path.name)
        else:
            temporary.chmod(0o755)
            temporary.rename(folder)
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(folder)) from None
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
