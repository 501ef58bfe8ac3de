"""What tests of training share."""

import pytest

from tests.transformer import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a data-bin of sentences of letters and their reverses."""
    return tiny.make_data(tmp_path_factory.mktemp("data"))
