"""The two files of a saved model: written whole or not at all, and checked when they are read.

The description stands in `factorized.json` for people and programs, and once more in the file of the tensors, so that
each of these is a whole save: between the renames of two files a killed process can leave the old one beside the new.
"""

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
NOTE, SAFE, PLAIN = "factorized.json", "model.safetensors", "model.pt"


def write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a save to `folder`.

    Raises:
        FileExistsError: if that is a file, or a folder that holds something else than an earlier save.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a save is a folder")
    anew = not folder.exists() or not any(folder.iterdir())
    if not anew and not _is_save(folder):
        raise FileExistsError(f"{folder} holds something else than an earlier save: give another folder")
    from . import __version__

    weights = SAFE if importlib.util.find_spec("safetensors") else PLAIN
    plain = {name: _alone(tensor) for name, tensor in tensors.items()}
    whole = {"format": FORMAT, "version": __version__, "weights": weights, "sha256": _digest(plain), **description}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        temporary = Path(name) / "save"
        temporary.mkdir()
        _write_tensors(temporary / weights, plain, json.dumps(whole))
        (temporary / NOTE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if anew:
            os.replace(temporary, folder)
        else:
            os.replace(temporary / weights, folder / weights)  # from here on the save is the new one
            os.replace(temporary / NOTE, folder / NOTE)
            (folder / (PLAIN if weights == SAFE else SAFE)).unlink(missing_ok=True)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors, on the CPU, of a save.

    Raises:
        FileNotFoundError: if there is no such folder.
        NotADirectoryError: if it is a file.
        ValueError: if it holds no save, or one that is damaged or of a newer version.
        ImportError: if it needs a package that is not installed.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; factorized.save makes one")
    if not (folder / NOTE).is_file():
        raise ValueError(f"{folder} holds no {NOTE}: it was not written by factorized.save")
    note = _parsed(folder / NOTE, (folder / NOTE).read_bytes())
    name = note.get("weights")
    if name not in (SAFE, PLAIN):
        raise ValueError(f"{folder / NOTE} is damaged: it names no file of tensors")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder} is damaged: {name} is missing")
    text, tensors = _read_tensors(path)
    description = _parsed(path, text)
    if description.get("sha256") != _digest(tensors):
        raise ValueError(f"{path} is damaged: its tensors are not those that were written")
    return description, tensors


def _is_save(folder: Path) -> bool:
    try:
        note = json.loads((folder / NOTE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(note, dict) and "format" in note and note.get("weights") in (SAFE, PLAIN)


def _parsed(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: its description cannot be read") from None
    form = found.get("format") if isinstance(found, dict) else None
    if not isinstance(form, int) or isinstance(form, bool) or form < 1:
        raise ValueError(f"{path} is damaged or not of factorized.save: it has no format version")
    if form > FORMAT:
        raise ValueError(
            f"{path} has the format {form} of a newer version ({found.get('version')}) of the library, which knows "
            f"formats up to {FORMAT}: install that version"
        )
    return found


def _write_tensors(path: Path, tensors: dict[str, Tensor], text: str) -> None:
    if path.name == SAFE:
        from safetensors.torch import save_file

        save_file(tensors, path, metadata={"format": "pt", "factorized": text})
    else:
        torch.save({"factorized": text, "tensors": tensors}, path)


def _read_tensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    if path.name == SAFE and not importlib.util.find_spec("safetensors"):
        raise ImportError(f"{path} needs the package safetensors: pip install safetensors")
    with open(path, "rb"):
        pass  # what the system has against it is no damage
    try:
        if path.name == SAFE:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return (file.metadata() or {})["factorized"], {name: file.get_tensor(name) for name in file.keys()}
        found = torch.load(path, map_location="cpu", weights_only=True)
        text, tensors = found["factorized"], dict(found["tensors"])
        if not isinstance(text, str) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise TypeError("not a save")
        return text, tensors
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, by what is damaged
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {reason}") from None


def _alone(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU that has its storage for itself, in the usual order."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
