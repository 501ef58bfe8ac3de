"""The lock of a run's folder, which keeps two runs from writing into one.

It is held for the whole run. The system frees it when the process dies, however that happens, so that no lock is ever
left over; what may be left is the file `.lock`, which then is nobody's.
"""

import contextlib
import fcntl
import os
import socket
import warnings
from pathlib import Path

from .cli import UserError

NAME = ".lock"

_held: set[int] = set()


def _close_inherited() -> None:
    """Give up a parent's locks, in a process forked from it: a worker that outlives it must not keep its folder."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


class Busy(UserError):
    """Another process holds the lock."""


class Lock:
    """The lock of `folder`, which is made if it is not there, and removed again if nothing has been written into it.

    Raises:
        Busy: if another process holds it.
        UserError: if the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._made: list[Path] = []
        self._handle: int | None = None
        try:
            self._acquire()
        except OSError as error:
            self.release()
            raise UserError(f"cannot write into {folder}: {error.strerror}; use another folder") from None
        except BaseException:
            self.release()
            raise

    def _acquire(self) -> None:
        path = self.folder / NAME
        while True:
            self._make_folder()
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # another process has just removed the folder
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_at(handle, path):  # another process has just removed the file
                    os.close(handle)
                    continue
            except BlockingIOError:
                holder = os.read(handle, 300).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise Busy(
                    f"{self.folder} is in use by {holder}: wait for that run, stop it, or use another folder"
                ) from None
            except OSError as error:
                warnings.warn(
                    f"the file system of {self.folder} has no locks ({error.strerror}): start no second run there",
                    stacklevel=2,
                )
            self._handle = handle
            _held.add(handle)
            with contextlib.suppress(OSError):  # of a full disk; the lock is what counts
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return

    def _make_folder(self) -> None:
        missing = []
        for path in (self.folder, *self.folder.parents):
            if path.exists():
                break
            missing.append(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made += [path for path in missing if path not in self._made]

    def release(self) -> None:
        """Free the lock, and remove what was made for it and nothing has come into."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.folder / NAME)
            _held.discard(self._handle)
            os.close(self._handle)
            self._handle = None
        for path in self._made:
            with contextlib.suppress(OSError):  # there is something in it
                path.rmdir()
        self._made = []


def is_held(folder: Path) -> bool:
    """Tell whether a process holds the lock of `folder`; a folder that cannot be looked into has none."""
    try:
        handle = os.open(folder / NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(handle)
    return False


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
