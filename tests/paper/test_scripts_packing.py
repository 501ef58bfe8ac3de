"""Packing the settings of a study into scripts, against the same rule written in the plainest way."""

import pytest

from paper.resnet import RESNET
from paper.scripts import pack


def plan(slots) -> list[list[tuple[str, tuple[int, ...]]]]:
    return [[(setting.name, trials) for setting, trials in slot.jobs] for slot in slots]


def expected(settings, trials, devices, one_trial, reverse):
    """The packing rule once more, in the plainest way."""
    order = sorted(settings, key=lambda setting: -setting.minutes if reverse else setting.minutes)
    every = tuple(range(1, trials + 1))
    minutes, contents = [0] * devices, [[] for _ in range(devices)]
    for setting in order:
        for share in [(trial,) for trial in every] if one_trial else [every]:
            slot = minutes.index(min(minutes))
            minutes[slot] += setting.minutes * len(share)
            contents[slot].append((setting.name, share))
    return [content[::-1] if reverse else content for content in contents if content], [m for m in minutes if m]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("one_trial", [False, True])
@pytest.mark.parametrize(("trials", "devices"), [(3, 1), (3, 7), (2, 160), (3, 600)])
def test_packing(trials, devices, one_trial, reverse):
    slots = pack(RESNET.settings, trials, devices, one_trial, reverse)
    contents, minutes = expected(RESNET.settings, trials, devices, one_trial, reverse)
    assert plan(slots) == contents
    assert [slot.minutes for slot in slots] == minutes


def test_each_setting_is_a_script_by_default():
    slots = pack(RESNET.settings, longest_first=RESNET.longest_first)
    assert [slot.number for slot in slots] == list(range(168))
    assert {slot.name for slot in slots} == {setting.name for setting in RESNET.settings}
    assert sorted({slot.minutes / 60 for slot in slots}) == [2.5, 3, 4, 4.5, 7.5, 9]
    assert slots[0].minutes == 540 and slots[-1].minutes == 150


def test_names_of_scripts():
    settings = RESNET.settings[:2]
    assert [slot.name for slot in pack(settings, trials=2, one_trial=True)] == [
        f"{setting.name}--{trial}" for setting in settings for trial in (1, 2)
    ]
    assert [slot.script for slot in pack(RESNET.settings, devices=3)] == ["slot_0.sh", "slot_1.sh", "slot_2.sh"]
