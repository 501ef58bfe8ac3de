"""What several files of tests of the library share."""

import pytest

from factorized import store_files


@pytest.fixture(params=[store_files.SAFE, store_files.PLAIN])
def kind(request, monkeypatch):
    """Both kinds of files, whatever is installed."""
    if request.param == store_files.SAFE:
        pytest.importorskip("safetensors")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return request.param
