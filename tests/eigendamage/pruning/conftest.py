"""One dense network for all tests of pruning runs."""

import pytest

from tests.eigendamage.pruning import tiny_prune


@pytest.fixture(scope="package")
def dense(tmp_path_factory):
    """The folder of a run of the trainer, which tests leave as it is."""
    return tiny_prune.pretrain(tmp_path_factory.mktemp("dense") / "run")
