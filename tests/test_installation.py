"""The wheel is the library alone, and the installed library wins in any working directory."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import factorized
from tests.harness import REPOSITORY


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("factorized", "lab", "paper"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    run(*pip, cwd=out)
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_is_the_library(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    assert {name.split("/")[0] for name in names} == {"factorized", f"factorized-{factorized.__version__}.dist-info"}
    package = REPOSITORY / "factorized"
    expected = {str(path.relative_to(REPOSITORY)) for path in package.rglob("*.py")} | {"factorized/py.typed"}
    assert {name for name in names if name.startswith("factorized/")} == expected
    assert "License-Expression: MIT" in text
    needed = re.findall(r"^Requires-Dist: (\w+)[^;\n]*$", text, re.M)
    assert sorted(needed) == ["numpy", "scipy", "torch"]


def test_the_wheel_runs_the_ten_lines(wheel, tmp_path):
    """In an environment with nothing but the wheel, and the packages of this one in view."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # Folders that a .pth file names are searched, but not for .pth files: editable installations stay out of view.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", site, wheel]
    run(*pip, cwd=tmp_path)
    (lines,) = re.findall(
        r"^```python\n(import torch, torchvision.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S
    )
    python = tmp_path / "env" / "bin" / "python"
    checks = "\nimport importlib.util\nprint(factorized.__file__)\nprint(importlib.util.find_spec('lab'))"
    file, lab = run(python, "-c", lines + checks, cwd=tmp_path).split()[-2:]
    assert Path(file).is_relative_to(site)
    assert lab == "None"


def test_the_installed_library_wins_over_a_clone_in_the_working_directory(tmp_path):
    """A clone is called as the library is, so that `import factorized` beside it could take the clone's folder."""
    (tmp_path / "factorized" / "factorized").mkdir(parents=True)
    (tmp_path / "factorized" / "setup.sh").touch()
    where = run(sys.executable, "-c", "import factorized; print(factorized.factorize.__module__)", cwd=tmp_path)
    assert where.strip() == "factorized.model"


def test_lab_and_paper_are_importable_from_the_checkout(tmp_path):
    out = run(sys.executable, "-c", "import lab, paper; print(lab.__file__); print(paper.__file__)", cwd=tmp_path)
    assert [Path(line).parent.parent for line in out.split()] == [REPOSITORY] * 2
