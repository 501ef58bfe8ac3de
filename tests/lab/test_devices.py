"""What several processes do together, one process standing for each in turn."""

import argparse

import pytest
import torch
import torch.distributed as dist

from lab import devices
from lab.cli import UserError


@pytest.fixture(params=[0, 1], ids=["main", "other"])
def process(request, monkeypatch) -> tuple[devices.Computing, list[str]]:
    """One of two processes, and what happens in it in order."""
    events = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box: events.append("meet"))
    return devices.Computing(torch.device("cpu"), None, False, torch.contiguous_format, request.param, 2), events


def test_the_main_process_loads_before_the_others(process):
    computing, events = process

    def load():
        events.append("load")
        return 7

    assert computing.main_first(load) == 7
    assert events == (["load", "meet"] if computing.is_main else ["meet", "load"])


def test_what_fails_first_is_not_tried_again(process, monkeypatch):
    computing, events = process
    mistake = UserError("no such set")

    def load():
        events.append("load")
        raise mistake

    def broadcast(box):
        box[1] = mistake

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    with pytest.raises(UserError, match="no such set"):
        computing.main_first(load)
    assert events == ["load"] * computing.is_main


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("rank", [0, 2])
def test_every_process_notices_that_there_are_too_few_gpus(device, rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="3 processes need as many GPUs, 2 found"):
        devices.start(argparse.Namespace(device=device))
