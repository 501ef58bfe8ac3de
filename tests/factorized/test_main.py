"""`python -m factorized`: the three commands, and what they say of mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import factorized
from factorized.__main__ import main

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1728, 40))

def tokens():
    return nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 48))

def sized(n):
    return nn.Linear(n, n)

def factors():
    import factorized
    return factorized.factorize(build(), ratio=0.4)

def broken():
    raise RuntimeError("no weights here")

number = 3
model = nn.Linear(3, 3)
words = str
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("own_models", None)
    yield tmp_path
    sys.modules.pop("own_models", None)


def built() -> nn.Module:
    import own_models

    return own_models.build()


SMALL = ("own_models:build", "--ratio", "0.4", "--input", "2x3x8x8")


def test_inspect_prints_the_summary(capsys):
    main(["inspect", *SMALL, "--allocate", "error", "--split", "channel"])
    text = capsys.readouterr().out
    sys.path.insert(0, ".")
    model = factorized.factorize(built(), ratio=0.4, allocate="error", split="channel")
    sys.path.pop(0)
    assert text.strip() == str(factorized.summary(model, torch.zeros(2, 3, 8, 8)))
    assert "error" in text.split("\n")[0] and "multiply-adds" in text.split("\n")[0]


def test_inspect_as_json_of_a_dense_model_and_of_tokens(capsys):
    main(["inspect", "own_models:build", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ratio"] == 1 and len(found["layers"]) == 3 and found["multiply_adds"] is None
    main(["inspect", "own_models:tokens", "--json", "--ratio", "0.9", "--input", "tokens:1x7", "--embeddings"])
    found = json.loads(capsys.readouterr().out)
    assert found["factorized_layers"] > 0 and found["dense_multiply_adds"] == 7 * 32 * 48


def test_inspect_of_known_packages(capsys):
    for name, layers in (("torchvision:squeezenet1_1", 26), ("timm:resnet10t", 15)):
        main(["inspect", name, "--input", "1x3x64x64", "--json"])
        found = json.loads(capsys.readouterr().out)
        assert len(found["layers"]) == layers and found["multiply_adds"] > 1e6


def test_convert_writes_what_load_reads_and_inspect_shows(capsys, folder):
    main(["convert", *SMALL[:3], "out", "--round-to", "4"])
    told = capsys.readouterr().out
    assert " parameters" in told.splitlines()[0] and "factorized.load(model, 'out')" in told
    sys.path.insert(0, ".")
    model = factorized.load(built(), "out")
    expected = factorized.factorize(built(), ratio=0.4, round_to=4)
    sys.path.pop(0)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(model(x), expected(x))
    main(["inspect", "out", "--json"])
    found = json.loads(capsys.readouterr().out)
    ranks = {name: layer.rank for name, layer in factorized.factorized_modules(model).items()}
    assert {row["name"]: row["rank"] for row in found["layers"]} == ranks
    assert found["numbers"] == factorized.parameter_count(model)
    main(["inspect", "out"])
    assert f"{len(ranks)} factorized layers; {found['numbers']:,} numbers" in capsys.readouterr().out


def test_weights_of_a_file_are_loaded(capsys, folder):
    sys.path.insert(0, ".")
    other = built()
    sys.path.pop(0)
    nn.init.normal_(other[0].weight)
    torch.save({"state_dict": {f"module.{name}": value for name, value in other.state_dict().items()}}, "w.pt")
    main(["convert", *SMALL, "out", "--weights", "w.pt", "--json"])
    assert json.loads(capsys.readouterr().out)["folder"] == "out"
    expected = factorized.factorize(other, ratio=0.4)
    state = factorized.store_files.read(Path("out"))[1]
    assert (
        torch.equal(state["0.U"], expected[0].U)
        if "0.U" in state
        else torch.equal(state["0.weight"], expected[0].weight)
    )


def test_benchmark_measures_four_forms(capsys, monkeypatch):
    monkeypatch.setattr("factorized.__main__._CALLS", 3)
    main(["benchmark", *SMALL, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["forms"]) == ["dense", "composed", "two_step", "deployed"] and found["input"] == "2x3x8x8"
    assert all(form["seconds"] > 0 for form in found["forms"].values())
    counts = {name: form["parameters"] for name, form in found["forms"].items()}
    assert counts["composed"] == counts["two_step"] < counts["dense"]
    main(["benchmark", *SMALL])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["form", "dense", "composed", "two_step", "deployed"]


MISTAKES = {
    "no model": (["inspect", "resnet50"], "neither a folder written by factorized.save nor a model: torchvision:NAME"),
    "no module": (["inspect", "nowhere:build"], "there is no module nowhere: install it, or go to its folder"),
    "no function": (["inspect", "own_models:bild"], "has no attribute 'bild'"),
    "an unknown network": (["inspect", "torchvision:resnet5"], "torchvision:resnet5 could not be built: ValueError"),
    "a function that fails": (["inspect", "own_models:broken"], "could not be built: RuntimeError: no weights here"),
    "a function of something else": (["inspect", "own_models:words"], "gives a str, not a torch.nn.Module"),
    "no size": (["benchmark", "own_models:build", "--ratio", "0.4"], "as in --input 1x3x224x224"),
    "a size of words": (["inspect", "own_models:build", "--input", "big"], "--input big is no size: write 1x3x224x224"),
    "no ratio": (["convert", "own_models:build", "out"], "give --ratio, a share of the model as 0.25, or --rank-scale"),
    "a ratio in percent": (["inspect", "own_models:build", "--ratio", "40"], "for 40 percent give ratio=0.4"),
    "a ratio out of reach": (["inspect", "own_models:build", "--ratio", "0.001"], "ratio 0.001 is unreachable"),
    "both": (["inspect", "own_models:build", "--ratio", "0.1", "--rank-scale", "0.1"], "not allowed with argument"),
    "a pattern": (["inspect", *SMALL, "--exclude", "head"], "module pattern 'head' matches no layer"),
    "a folder in use": (["convert", *SMALL[:3], "."], ". exists: give another folder, or --overwrite"),
    "something else's folder": (["convert", *SMALL[:3], ".", "--overwrite"], "holds something else"),
    "no weights": (["inspect", "own_models:build", "--weights", "none.pt"], "No such file or directory: 'none.pt'"),
    "weights of nothing": (["inspect", "own_models:build", "--weights", "own_models.py"], "is no file of tensors"),
    "weights of another": (["inspect", "own_models:build", "--weights", "other.pt"], "other.pt does not fit the model"),
    "an unknown flag": (["inspect", "own_models:build", "--rate", "1"], "unrecognized arguments: --rate"),
    "no command": ([], "required: inspect|benchmark|convert"),
    "multiply-adds without a size": (
        ["inspect", "own_models:build", "--ratio", "0.5", "--cost", "multiply-adds"], "give an example_input",
    ),
    "a file of Python": (["inspect", "./own_models.py:build"], "is no module: write own_models:build, as in an import"),
    "a module that fails": (["inspect", "damaged:build"], "damaged cannot be imported: SyntaxError"),
    "a module in need": (["inspect", "needy:build"], "there is no module nowhere_else: install it"),
    "a function with arguments": (["inspect", "own_models:sized"], "own_models:sized could not be built: TypeError"),
    "a model": (["inspect", "own_models:model"], "is a Linear: name a function that builds a model and returns it"),
    "a number": (["inspect", "own_models:number"], "is a int: name a function that builds a model and returns it"),
    "a factorized model": (["inspect", "own_models:factors", "--ratio", "0.4"], "factorized.merge makes them dense"),
    "a folder to convert": (["convert", "saved", "new", "--ratio", "0.4"], "saved is factorized already: give the den"),
    "a folder to time": (["benchmark", "saved", "--input", "1x3x8x8"], "saved is factorized already: give the dense"),
    "a folder and weights": (["inspect", "saved", "--weights", "w.pt"], "factorized already: leave --weights out"),
    "a folder for weights": (["inspect", "own_models:build", "--weights", "saved"], "saved is a folder: --weights"),
    "an empty file": (["inspect", "own_models:build", "--weights", "empty.pt"], "empty.pt is no file of tensors: EOF"),
    "patterns for nothing": (
        ["inspect", "own_models:build", "--include", "0", "--round-to", "8"],
        "without --ratio or --rank-scale there is no effect of --round-to, --include: give one of them",
    ),
    "too few channels": (["inspect", *SMALL[:3], "--input", "1x1x8x8"], "an input of --input 1x1x8x8: Given groups=1"),
    "too large images": (["benchmark", *SMALL[:3], "--input", "1x3x9x9"], "cannot be called with an input of --input"),
    "one size": (["inspect", *SMALL[:3], "--input", "8"], "cannot be called with an input of --input 8: Expected 3D"),
    "tokens for images": (["inspect", *SMALL[:3], "--input", "tokens:1x8"], "an input of --input tokens:1x8"),
    "a flag with underscores": (["inspect", "own_models:build", "--rank_scale", "0.4"], "did you mean --rank-scale?"),
    "part of a flag": (["inspect", "own_models:build", "--rank", "8"], "did you mean --rank-scale?"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(case, capsys):
    arguments, message = MISTAKES[case]
    torch.save({"a": torch.zeros(2)}, "other.pt")
    Path("empty.pt").touch()
    Path("damaged.py").write_text("def build(:")
    Path("needy.py").write_text("import nowhere_else")
    factorized.save(factorized.factorize(nn.Sequential(nn.Linear(32, 32)), ranks={"0": 2}), "saved")
    with pytest.raises(SystemExit) as end:
        main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and error.startswith("python -m factorized: "), error
    assert message in error


def test_as_a_program(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(factorized.__file__).resolve().parent.parent)}
    command = [sys.executable, "-m", "factorized", "inspect", "own_models:build", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and json.loads(done.stdout)["parameters"] > 1000
