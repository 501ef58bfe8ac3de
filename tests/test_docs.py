"""The documentation: its Python runs and prints what it says, its API pages have every public name, and it builds."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from eigendamage.pruning.pruned import Pruned

import factorized
import factorized.__main__ as library
from tests.harness import REPOSITORY, environment

DOCS = REPOSITORY / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)


def blocks(page: str) -> list[tuple[str, str, int]]:
    """Return language, text and line of each block of code."""
    text = (DOCS / page).read_text()
    return [(found[1], found[2], text[: found.start(2)].count("\n")) for found in FENCE.finditer(text)]


def leave_pruned(path: Path) -> None:
    """Leave a file as a pruning run does."""
    network = Pruned.dense("resnet", 8, 10)
    path.parent.mkdir(parents=True)
    torch.save({"pruned": network.describe(), "net": network.model.state_dict()}, path)


@pytest.mark.parametrize("page", [page for page in PAGES if any(kind == "python" for kind, _, _ in blocks(page))])
def test_python_runs_and_prints_what_it_says(page, tmp_path, monkeypatch, capsys):
    """Block after block, as one program; a block of text after one is what it prints."""
    monkeypatch.chdir(tmp_path)
    if page == "experiments.md":
        leave_pruned(tmp_path / "runs" / "pruned" / "best.t7")
    names: dict = {"__name__": "__main__"}
    printed = ""
    for kind, text, line in blocks(page):
        if kind == "python":
            exec(compile("\n" * line + text, DOCS / page, "exec"), names)
            printed = capsys.readouterr().out
        elif kind == "text":
            assert printed == text, page


@pytest.mark.parametrize("notebook", sorted(path.name for path in (DOCS / "notebooks").glob("*.ipynb")))
def test_notebooks_print_what_they_show(notebook, capsys):
    """Cell after cell, in the same words; the numbers, which another machine rounds otherwise, may differ."""
    names: dict = {"__name__": "__main__"}
    shown = 0
    for number, cell in enumerate(json.loads((DOCS / "notebooks" / notebook).read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook}, cell {number}", "exec"), names)
            expected = "".join(text for output in cell["outputs"] for text in output["text"])
            assert _masked(capsys.readouterr().out) == _masked(expected), f"cell {number}"
            shown += bool(expected)
    assert shown > 2


def _masked(text: str) -> list[str]:
    return re.sub(r"[\d.,]*\d", "#", text).split()


def test_commands_of_the_library_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for page in PAGES for kind, text, _ in blocks(page) if kind == "sh" for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("python -m factorized ")]
    assert len(commands) > 2
    for command in commands:
        argv = shlex.split(command)[3:]
        if argv[0] == "benchmark":  # takes a while
            library._parser().parse_args(argv)
            continue
        library.main(argv)
        assert capsys.readouterr().out


def test_pages_with_python_there_are():
    assert sum(kind == "python" for page in PAGES for kind, _, _ in blocks(page)) > 20


def test_every_public_name_has_its_place_in_the_api():
    shown = [name for page in PAGES for name in re.findall(r"^::: factorized\.(\w+)$", (DOCS / page).read_text(), re.M)]
    assert sorted(shown) == sorted(factorized.__all__)


def test_files_that_are_named_exist():
    """Tests and programs in the tables, and commands of `python -m paper`."""
    text = "".join((DOCS / page).read_text() for page in PAGES)
    here = {path.name for path in REPOSITORY.rglob("*.py")}
    named = set(re.findall(r"`(?:[\w-]+/)*((?:test_)?\w+\.py)`", text))
    assert len(named) > 20 and not named - here
    commands = set(re.findall(r"`python -m paper (\w+)", text))
    assert commands and commands <= set(importlib.import_module("paper.__main__").COMMANDS)


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs the extra `docs`")
def test_it_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    quiet = environment(NO_MKDOCS_2_WARNING="1")
    done = subprocess.run(command, cwd=REPOSITORY, env=quiet, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert "coefficient" in (tmp_path / "api" / "decay" / "index.html").read_text()
