"""Which checkpoints a run leaves beside the last and the best."""

import pytest

from tests.transformer import tiny


def numbered(run):
    return {path.stem.removeprefix("checkpoint") for path in run.glob("checkpoint[0-9]*.pt")}


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ("--save-interval 2", {"2", "4"}),
        ("--keep-last-epochs 2", {"4", "5"}),
        ("--save-interval 2 --keep-last-epochs 1", {"4"}),
        ("--keep-last-epochs 1 --average-last 3", {"3", "4", "5"}),
        ("--save-interval 2 --average-last 2 --no-epoch-checkpoints", {"2", "4"}),
        ("--save-interval-updates 10 --no-epoch-checkpoints", set()),
        ("--save-interval-updates 4 --keep-interval-updates 2 --save-interval 9", {"4_5", "5_4"}),
        ("--save-interval -1 --keep-last-epochs -1 --max-epoch 2", {"1", "2"}),
    ],
)
def test_of_five_epochs_of_five_updates(data, tmp_path, flags, left):
    run = tiny.train(data, tmp_path / "run", f"--max-epoch 5 --no-diagnostics {flags}")
    assert numbered(run) == left
    assert {"checkpoint_last.pt", "checkpoint_best.pt"} <= {path.name for path in run.iterdir()}


def test_limits_hold_over_the_parts_of_a_run(data, tmp_path):
    flags = "--keep-last-epochs 2 --save-interval-updates 2 --keep-interval-updates 1 --no-diagnostics"
    run = tiny.train(data, tmp_path / "run", f"{flags} --max-epoch 3")
    assert numbered(run) == {"2", "3", "3_4"}
    tiny.train(data, run, f"{flags} --max-epoch 4")
    assert numbered(run) == {"3", "4", "4_5"}  # the twentieth update is the last of an epoch
