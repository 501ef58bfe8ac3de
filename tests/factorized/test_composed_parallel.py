"""Composed weights under DistributedDataParallel and FSDP2, against one process with the whole batch."""

import pytest
import torch

from tests.factorized import parallel
from tests.harness import torchrun


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    done = torchrun("", "-m", parallel.__name__, str(tmp_path / "found.pt"))
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for way in ("replicated", "sharded"):
        for one, other in zip(found["whole"], found[way], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)
