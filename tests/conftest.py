"""Settings shared by all tests: few threads, a fixed seed before every test, GPU tests only where there is a GPU."""

import pytest
import torch

torch.set_num_threads(2)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
