"""Frobenius decay of a model whose parameters `fully_shard` spreads over processes."""

import torch

from tests.factorized import sharded
from tests.harness import torchrun


def test_sharded_factors_decay_as_whole_ones(tmp_path):
    """Layers of both paths and attention, whose factors are views of its parameters; the penalty, too."""
    path = tmp_path / "found.pt"
    ran = torchrun("lab", "-m", "tests.factorized.sharded", str(path))
    assert ran.returncode == 0, ran.stderr
    found = torch.load(path, weights_only=True)
    assert found.keys() == sharded.WAYS.keys()
    for parts, whole in found.values():
        for ours, theirs in zip(parts, whole, strict=True):
            assert theirs.isfinite().all()
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    final = [whole[0] for _, whole in found.values()]
    torch.testing.assert_close(final[0], final[1])
    assert not torch.allclose(final[0], final[2])
