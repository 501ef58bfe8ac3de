"""Files that are written whole or not at all, and checkpoints that resume exactly."""

import contextlib
import glob
import hashlib
import json
import os
import secrets
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .cli import FULL, UserError
from .devices import Computing, random_state, set_random_state

_UNFINISHED = ".part"
_ABANDONED = 3600  # seconds since the last change of such a file, after which nobody is writing it any more

# Checkpoints are ZIP archives, which end in a comment that all readers skip. Ours is a checksum of all before it.
_END = b"PK\x05\x06"  # begins the last record of an archive, which has 22 bytes and then the comment
_MARK = b"sha256:"
_COMMENT = len(_MARK) + hashlib.sha256().digest_size * 2


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: an interruption leaves the old file intact.

    A link stays one, and the file that it points to is replaced. A temporary file that a killed process has left is
    removed by the first call for the same `path` an hour later.

    Raises:
        UserError: if there is something at `path` that is no regular file, such as a device.
        OSError: if the disk is full, with the name `path`; for other reasons of the system's.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise UserError(f"cannot write {path}: it is {'a folder' if target.is_dir() else 'no regular file'}")
    for left in target.parent.glob(f".{glob.escape(target.name)}.????????{_UNFINISHED}"):
        with contextlib.suppress(OSError):  # it has just been renamed, or is not ours
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    # Not by `tempfile`, whose files nobody else may read; these get the rights that the user's umask gives.
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        os.unlink(temporary)
        # When the disk is full, `torch.save` says that it is at a wrong position.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise


def save(path: Path, state: object) -> None:
    """Write `state` as `torch.save` does, whole or not at all, with a checksum that `load` compares."""

    def write(file: IO[bytes]) -> None:
        torch.save(state, file)
        file.seek(-2, os.SEEK_END)
        file.write(_COMMENT.to_bytes(2, "little"))
        file.seek(0)
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        file.write(_MARK + digest.hexdigest().encode())

    write_whole(path, write)


def save_json(path: Path, value: object) -> None:
    """Write `value` as JSON, indented by 4, whole or not at all."""
    write_whole(path, lambda file: file.write((json.dumps(value, indent=4) + "\n").encode()))


def load(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return what `save` or `torch.save` wrote, on `device`. Only tensors and plain values are read, never code.

    Raises:
        UserError: if the file is missing, damaged, or holds anything else.
    """
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}")
    if _is_damaged(path):
        raise UserError(f"{path} is not a readable checkpoint: its checksum is wrong, some of its bytes have changed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that is refused anyway
            return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises many types for a damaged file
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}); it may be truncated") from None


def _is_damaged(path: Path) -> bool:
    """Tell whether a checksum in the file is wrong: ours of the whole file, or else those of the archive's parts."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _COMMENT - 22))
        end = file.read()
        if len(end) == 22 + _COMMENT and (end.startswith(_END) or end.startswith(_MARK, 22)):
            digest, left = hashlib.sha256(), size - _COMMENT
            file.seek(0)
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            return end[22:] != _MARK + digest.hexdigest().encode()
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch writes these checksums, but can be told not to
            return any(part.CRC for part in archive.infolist()) and archive.testzip() is not None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False  # no archive, as PyTorch once wrote, or so damaged that it cannot be loaded


def training_state(
    model: nn.Module, optimizer: Optimizer, computing: Computing, *, weights: str = "state_dict", **progress
) -> dict:
    """Return all that an exact continuation needs. `progress` is the trainer's own: epoch, best score, history.

    Args:
        weights: the key of the network; `net` is the other one that `load_weights` knows.
    """
    return {
        **progress,
        weights: model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": computing.scaler.state_dict(),
        "random": random_state(),
    }


def restore_training(state: dict, model: nn.Module, optimizer: Optimizer, computing: Computing, source: Path) -> None:
    """Put a `training_state` back. One without optimizer state restores the weights alone.

    Learning rate, weight decay and momentum stay those of `optimizer`, which are the run's own.

    Raises:
        UserError: if it belongs to another network, or one whose parameters are grouped otherwise; if it lacks a part,
            or one holds what it cannot.
    """
    load_weights(model, state, source)
    if "optimizer" not in state:
        return
    if absent := [part for part in ("scaler", "random") if part not in state]:
        raise UserError(f"{source} is of no run that could be continued: it has no {absent[0]}")
    with as_damage(source):
        options = [{**group} for group in optimizer.param_groups]
        sizes = [len(group["params"]) for group in options]
        if sizes != [len(group["params"]) for group in state["optimizer"]["param_groups"]]:
            raise UserError(f"{source} is of a run with other decay (--wd2fd); continue it with the same flags")
        optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(optimizer.param_groups, options):
            group.update(own)
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                _check_state(name, value, parameter)
        if {**state["scaler"]}:  # empty without fp16
            computing.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])


def _check_state(name: str, value: object, parameter: Tensor) -> None:
    """Raise ValueError for what no optimizer holds of a parameter: it is a number of steps, or like the parameter."""
    if isinstance(value, Tensor):
        if value.dim() and value.shape != parameter.shape:
            raise ValueError(f"{name} in the optimizer has another shape than its parameter")
        if not value.isfinite().all():
            raise ValueError(f"{name} in the optimizer is not finite")
    elif value is not None and name != "step":
        raise ValueError(f"{name} in the optimizer is {value!r}")


@contextlib.contextmanager
def as_damage(source: Path) -> Iterator[None]:
    """Say of errors, which values of other types and lengths than ours lead to, that the file `source` is damaged.

    Raises:
        UserError: for each of them.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is damaged, or no checkpoint of this program: {what}") from None


def load_weights(model: nn.Module, state: object, source: Path) -> None:
    """Load the weights in `state`, its `state_dict` or `net`, into `model`.

    Their names may have the prefixes that `DataParallel`, `DistributedDataParallel` and `torch.compile` give them.

    Raises:
        UserError: if there are none, they belong to another network, or they are no finite floating-point numbers.
    """
    saved = state.get("state_dict", state.get("net")) if isinstance(state, dict) else None
    if not isinstance(saved, dict):
        raise UserError(f"{source} holds no network: a checkpoint has a state_dict or net")
    wanted = model.state_dict()
    for unwrapped in (lambda name: name.replace("_orig_mod.", ""), lambda name: name.removeprefix("module.")):
        if saved.keys() != wanted.keys():
            saved = {unwrapped(str(name)): value for name, value in saved.items()}
    differing = [name for name in {**wanted, **saved} if _shape(saved, name) != _shape(wanted, name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{source} is of another network: {len(differing)} of {len(wanted)} tensors differ, the first is {name}, "
            f"{_shape(saved, name) or 'absent'} there and {_shape(wanted, name) or 'absent'} here"
        )
    for name, tensor in saved.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise UserError(f"{source} is damaged: {name} is of type {tensor.dtype}, not {wanted[name].dtype}")
        if not tensor.isfinite().all():
            raise UserError(f"{source} is damaged: {name} has values that are not finite")
    model.load_state_dict(saved)


def _shape(state: dict, name: str) -> str:
    tensor = state.get(name)
    return str(list(tensor.shape)) if isinstance(tensor, Tensor) and tensor.layout == torch.strided else ""
