"""Folders of saved models: whole after any failure, the old or the new after a kill, refused where damaged."""

import copy
import json
import os

import pytest
import torch

import factorized
from factorized import store_files
from tests.factorized.stored import dense, inputs, small


def test_a_save_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path, kind):
    net = small()
    factorized.save(net, tmp_path / "save")
    (tmp_path / "save" / "notes.txt").write_text("mine")
    with torch.no_grad():
        net.head.weight.mul_(2)
    factorized.save(net, tmp_path / "save")
    assert torch.equal(factorized.load(dense(), tmp_path / "save")(*inputs()), net(*inputs()))
    assert (tmp_path / "save" / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        factorized.save(net, tmp_path / "other")
    with pytest.raises(FileExistsError, match="is a file"):
        factorized.save(net, tmp_path / "other" / "thesis.txt")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_killed_at_any_rename_it_is_the_old_save_or_the_new_one(tmp_path, monkeypatch):
    """Also where the new one has a file of tensors of another kind."""
    pytest.importorskip("safetensors")
    net, replace = small(), os.replace
    old = net(*inputs())
    outcomes = []
    for kinds in ((True, True), (True, False), (False, True)):
        for survived in range(3):
            folder = tmp_path / f"{kinds}{survived}"
            for safe, model in zip(kinds, (net, copy.deepcopy(net))):
                with monkeypatch.context() as patch:
                    if not safe:
                        patch.setattr("importlib.util.find_spec", lambda name: None)
                    if model is not net:
                        with torch.no_grad():
                            model.head.weight.mul_(2)
                        left = [survived]

                        def until(*args, left=left):
                            left[0] -= 1
                            if left[0] < 0:
                                raise KeyboardInterrupt
                            replace(*args)

                        patch.setattr(os, "replace", until)
                    try:
                        factorized.save(model, folder)
                    except KeyboardInterrupt:
                        assert survived < 2
            found = factorized.load(dense(), folder)(*inputs())
            outcomes.append(torch.equal(found, old))
            assert outcomes[-1] or torch.equal(found, model(*inputs()))
            assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert outcomes == [True, False, False, True, True, False, True, True, False]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_files, "_write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        factorized.save(small(), tmp_path / "save")
    assert not list(tmp_path.iterdir())


def _cut(folder, kind):
    path = folder / kind
    path.write_bytes(path.read_bytes()[:-20])


def _flip(folder, kind):
    """Change one bit of a tensor."""
    path = folder / kind
    content = bytearray(path.read_bytes())
    value = small().conv.U.detach().numpy().tobytes()
    content[content.index(value) + 2] ^= 1
    path.write_bytes(content)


def _note(**changes):
    def change(folder, kind):
        path = folder / "factorized.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    "damage, message",
    [
        (_cut, "damaged"),
        (_flip, "damaged"),
        (lambda folder, kind: (folder / kind).write_bytes(b""), "damaged"),
        (lambda folder, kind: (folder / kind).write_bytes(b"nonsense" * 9), "damaged"),
        (lambda folder, kind: (folder / kind).unlink(), "is missing"),
        (lambda folder, kind: (folder / "factorized.json").unlink(), "was not written by factorized.save"),
        (lambda folder, kind: (folder / "factorized.json").write_text("{"), "description cannot be read"),
        (lambda folder, kind: (folder / "factorized.json").write_text("[" * 99999), "description cannot be read"),
        (lambda folder, kind: (folder / "factorized.json").write_bytes(b"\xff\xfe"), "description cannot be read"),
        (lambda folder, kind: (folder / "factorized.json").write_text("[]"), "no format version"),
        (_note(format=None), "no format version"),
        (_note(format=2, version="9.1"), r"format 2 of a newer version \(9.1\)"),
        (_note(weights="../model.pt"), "names no file of tensors"),
    ],
)
def test_damaged_folders(tmp_path, kind, damage, message):
    torch.manual_seed(0)
    factorized.save(small(), tmp_path)
    damage(tmp_path, kind)
    other = dense()
    with pytest.raises(ValueError, match=message) as error:
        factorized.load(other, tmp_path)
    assert "\n" not in str(error.value) and not factorized.structure(other)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        factorized.load(dense(), tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="not a folder"):
        factorized.load(dense(), tmp_path / "file")
