"""All tests of the trainer see tiny digits."""

import pytest

from lab.data import images
from tests.eigendamage import tiny


@pytest.fixture(scope="package", autouse=True)
def _tiny_digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(images.LOADERS, "digits", tiny.digits)
        yield
