"""Rules of docs/architecture.md and CONTRIBUTING.md that a program can check."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.harness import REPOSITORY

# Folders of programs, and in them the packages.
EXPERIMENTS = {
    "pytorch_resnet_cifar10": ".",
    "EigenDamage-Pytorch": "eigendamage",
    "deficient-efficient": "deficient",
    "Transformer-PyTorch": "fairseq",
}
OPTIONAL = {"safetensors", "tqdm"}  # what the library uses where it is installed
PACKAGES = {"factorized": ".", "lab": ".", "paper": "."} | {
    package: folder for folder, package in EXPERIMENTS.items() if package != "."
}


def modules(package: str) -> dict[str, Path]:
    """Return the files of a package by the full names of its modules."""
    root = REPOSITORY / PACKAGES[package]
    found = {path.relative_to(root).with_suffix(""): path for path in sorted((root / package).rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in found.items()}


def imports(path: Path, module: str = "") -> Iterator[str]:
    """Yield the full names of what a file imports, wherever in it; `from a import b` gives both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = node.level - (path.name == "__init__.py")  # a package's own file is in it already
            parents = module.split(".")[: -above or None] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (base, *(f"{base}.{name.name}" for name in node.names))


def constants(path: Path) -> list[str]:
    """Return the names in capitals that a file defines at its outermost level."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()]
    return found


def test_no_test_imports_another():
    files = sorted((REPOSITORY / "tests").rglob("*.py"))
    assert len(files) > 100
    names = {f"{path.relative_to(REPOSITORY)}: {name}" for path in files for name in imports(path)}
    assert not [name for name in names if ".test_" in name.split(": ")[1]]


def test_arrows_of_import():
    """The library imports neither running gear nor experiment, `lab` no experiment, `paper` `lab` alone."""
    experiments = {path.stem for folder in EXPERIMENTS for path in (REPOSITORY / folder).glob("*.py")} | PACKAGES.keys()
    allowed = {"factorized": {"factorized"}, "lab": {"lab", "factorized"}, "paper": {"paper", "lab"}}
    for package, own in allowed.items():
        for module, path in modules(package).items():
            roots = {name.split(".")[0] for name in imports(path, module)}
            assert not roots & (experiments - own), path
            if package == "factorized":
                third = roots - {"factorized", "torch", "numpy", "scipy", *OPTIONAL}
                assert third <= set(sys.stdlib_module_names), path


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_imports(package):
    """Not even one that closes inside of functions or for type checkers alone."""
    files = modules(package)
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    graph = {
        name: {found for found in imports(path, name) if found in files.keys() - packages - {name}}
        for name, path in files.items()
    }
    assert len(graph) > 5 and any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_constant_has_its_name_alone(package):
    """Two of one name in one package would be taken for one another."""
    names = Counter(name for path in modules(package).values() for name in constants(path))
    assert names and not [name for name, times in names.items() if times > 1]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_has_the_name_of_a_function(package):
    """Of a function or class beside it: `from package import name` would give one or the other."""
    for path in modules(package).values():
        beside = {other.stem for other in path.parent.glob("*.py")}
        defined = {
            node.name for node in ast.parse(path.read_text()).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert not beside & defined, path
