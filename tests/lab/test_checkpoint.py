"""Files written whole or not at all, and states that are restored to the bit."""

import argparse
import contextlib
import errno
import os
import random
import resource
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from lab import checkpoint, devices
from lab.cli import UserError
from lab.flags import Training
from lab.settings import Parser


def computing(*flags: str) -> devices.Computing:
    return devices.start(Parser(Training).parse_args(["--device", "cpu", *flags]))


def training():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()


# Files


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "new").symlink_to("there/other")
    for name in ("link", "new"):
        checkpoint.save_json(tmp_path / name, 1)
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "1\n"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["file", "other"]


def test_what_is_no_regular_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/null")
    for name, reason in (("pipe", "no regular file"), ("folder", "a folder"), ("device", "no regular file")):
        with pytest.raises(UserError, match=f"it is {reason}"):
            checkpoint.save(tmp_path / name, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder", "device"}


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    checkpoint.write_whole(path, lambda file: file.write(b"old"))

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_whole(path, interrupted)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@contextlib.contextmanager
def small_files_only():
    """Let writing fail beyond 16 KiB, as on a full disk; pytest's own output, too, so inside a test only."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("write", [checkpoint.save, checkpoint.save_json])
@pytest.mark.parametrize("size", [10**4, 10**6])
def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, write, size):
    path = tmp_path / "file"
    write(path, [])
    before = path.read_bytes()
    with pytest.raises(OSError) as full, small_files_only():
        write(path, list(range(size)))
    assert (full.value.errno, full.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["file"]


def test_other_failures_to_save_are_not_taken_for_a_full_disk(tmp_path):
    def fail(file):
        try:
            raise PermissionError
        except PermissionError:
            raise RuntimeError("ours")  # noqa: B904  (as PyTorch's writer raises)

    with pytest.raises(RuntimeError, match="ours"):
        checkpoint.write_whole(tmp_path / "file", fail)


def leave_unfinished(path: Path, age: float) -> Path:
    """Write as a process does that is killed, `age` seconds ago; return what it leaves."""
    before = set(path.parent.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", lambda name: None)
        with pytest.raises(SystemExit):
            checkpoint.write_whole(path, lambda file: exit())
    (left,) = set(path.parent.iterdir()) - before
    os.utime(left, (left.stat().st_mtime - age,) * 2)
    return left


def test_what_a_killed_process_has_left_is_removed_when_nobody_can_be_writing_it(tmp_path):
    leave_unfinished(tmp_path / "[a]", 7200)
    kept = {leave_unfinished(tmp_path / name, 7200) for name in ("a", "[a].b")}
    kept |= {leave_unfinished(tmp_path / "[a]", 1800), tmp_path / "[a]"}
    checkpoint.write_whole(tmp_path / "[a]", lambda file: file.write(b"new"))
    assert set(tmp_path.iterdir()) == kept


def test_files_can_be_read_by_others(tmp_path):
    checkpoint.save_json(tmp_path / "a.json", {"one": [1]})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "a.json").read_text() == '{\n    "one": [\n        1\n    ]\n}\n'


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x04."])
def test_damaged_files(tmp_path, content):
    (tmp_path / "file.th").write_bytes(content)
    with pytest.raises(UserError, match="file.th is not a readable checkpoint"):
        checkpoint.load(tmp_path / "file.th")


def test_missing_files(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="no such file"):
            checkpoint.load(path)


def test_code_is_not_read(tmp_path):
    torch.save({"state_dict": argparse.Namespace()}, tmp_path / "file.th")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "file.th")


# States


def test_training_goes_on_exactly(tmp_path):
    model, optimizer = training()
    step(model, optimizer)
    checkpoint.save(tmp_path / "a.th", checkpoint.training_state(model, optimizer, computing("--seed", "5"), epoch=3))
    draws = random.random(), numpy.random.rand(), torch.rand(1).item()
    step(model, optimizer)
    other, its = training()
    state = checkpoint.load(tmp_path / "a.th")
    assert state["epoch"] == 3
    its.param_groups[0]["lr"] = 0.1
    checkpoint.restore_training(state, other, its, computing(), tmp_path / "a.th")
    assert (random.random(), numpy.random.rand(), torch.rand(1).item()) == draws
    step(other, its)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_settings_are_those_of_the_run_that_goes_on(tmp_path):
    model, optimizer = training()
    step(model, optimizer)
    state = checkpoint.training_state(model, optimizer, computing())
    other = nn.Linear(3, 2)
    its = torch.optim.SGD(other.parameters(), lr=0.5, momentum=0.7, weight_decay=0.01)
    checkpoint.restore_training(state, other, its, computing(), tmp_path)
    group = its.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.7, 0.01)
    assert group["params"] == list(other.parameters())
    assert torch.equal(its.state[other.weight]["momentum_buffer"], optimizer.state[model.weight]["momentum_buffer"])


def test_other_groups_are_refused(tmp_path):
    model, optimizer = training()
    state = checkpoint.training_state(model, optimizer, computing())
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    with pytest.raises(UserError, match="other decay"):
        checkpoint.restore_training(state, model, torch.optim.SGD(groups, lr=0.1), computing(), tmp_path)


@pytest.mark.parametrize(
    "state, message",
    [
        ([], "holds no network"),
        ({"weight": torch.zeros(2, 3)}, "holds no network"),
        ({"state_dict": {}}, "2 of 2 tensors differ, the first is weight, absent there"),
        ({"state_dict": {"weight": torch.zeros(2, 3), "bias": 1}}, "bias, absent there"),
        ({"state_dict": {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}}, r"weight, \[3, 2\] there and \[2, 3\]"),
        ({"state_dict": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2).to_sparse()}}, "bias, absent there"),
        ({"state_dict": {1: torch.zeros(2, 3), None: 3}}, "first is weight, absent there"),
        ({"net": {"weight": torch.zeros(2, 3), "bias": torch.tensor([0, torch.nan])}}, "damaged: bias has values"),
        ({"net": {"weight": torch.full((2, 3), -torch.inf), "bias": torch.zeros(2)}}, "damaged: weight has values"),
        ({"net": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2).long()}}, "bias is of type torch.int64, not"),
        ({"net": {"weight": torch.zeros(2, 3).cfloat(), "bias": torch.zeros(2)}}, "weight is of type torch.complex64"),
    ],
)
def test_foreign_states(tmp_path, state, message):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(UserError, match=message):
        checkpoint.load_weights(model, state, tmp_path / "x.th")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_of_a_wrapped_network(tmp_path, prefix):
    model, other = (nn.ModuleDict({"module": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2)}) for _ in range(2))
    checkpoint.load_weights(model, {"net": {prefix + k: v for k, v in other.state_dict().items()}}, tmp_path / "x.th")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_weights_of_a_compiled_part(tmp_path):
    model, other = (nn.Sequential(nn.Linear(3, 2)) for _ in range(2))
    checkpoint.load_weights(model, {"net": nn.Sequential(torch.compile(other[0])).state_dict()}, tmp_path / "x.th")
    assert torch.equal(model[0].weight, other[0].weight)


def test_a_state_without_all_parts(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = checkpoint.training_state(model, optimizer, computing())
    del state["random"]
    with pytest.raises(UserError, match="has no random"):
        checkpoint.restore_training(state, model, optimizer, computing(), tmp_path / "x.th")


# Checksums


@pytest.fixture
def saved(tmp_path) -> Path:
    checkpoint.save(tmp_path / "a.th", {"weights": torch.arange(40.0), "epoch": 3})
    return tmp_path / "a.th"


def test_every_changed_byte_is_noticed(saved):
    content = saved.read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 16
        saved.write_bytes(changed)
        with pytest.raises(UserError, match="a.th is not a readable checkpoint"):
            checkpoint.load(saved)
    saved.write_bytes(content)
    assert checkpoint.load(saved)["epoch"] == 3


@pytest.mark.parametrize("mmap", [False, True])
def test_pytorch_reads_files_with_a_checksum(saved, mmap):
    state = torch.load(saved, weights_only=True, mmap=mmap)
    assert torch.equal(state["weights"], torch.arange(40.0)) and state["epoch"] == 3


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch_load(tmp_path, zipped):
    torch.save({"weights": torch.arange(40.0)}, tmp_path / "b.th", _use_new_zipfile_serialization=zipped)
    assert torch.equal(checkpoint.load(tmp_path / "b.th")["weights"], torch.arange(40.0))


def test_a_changed_weight_in_a_file_of_pytorch_is_noticed(tmp_path):
    torch.save({"weights": torch.full((40,), 1.5)}, tmp_path / "b.th")
    content = (tmp_path / "b.th").read_bytes()
    (tmp_path / "b.th").write_bytes(content.replace(b"\x00\x00\xc0\x3f", b"\x00\x00\xc1\x3f", 1))
    with pytest.raises(UserError, match="its checksum is wrong"):
        checkpoint.load(tmp_path / "b.th")


def test_files_have_the_rights_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640
