"""Programs as modules, what they say of a mistake, and what they leave on disk."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import preprocess
import pytest

from lab.cli import run


def load_program(name: str) -> ModuleType:
    """Return the program `name`, a path from the folder of preprocess.py, as a module; its name is none of a module."""
    path = Path(preprocess.__file__).parent / name
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def complaint_about(main: Callable[[], object], prog: str, capsys, status: int = 2) -> str:
    """Return the one line on standard error with which `main` ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(main, prog)
    error = capsys.readouterr().err
    assert stop.value.code == status and error.startswith(f"{prog}: error: ") and error.count("\n") == 1, error
    return error


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """Return what is in `folder`, with the contents of files."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
