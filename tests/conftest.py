"""Settings shared by all tests: one thread, a fixed seed before every test, GPU tests only where there is a GPU."""

import pytest
import torch

# The tensors are tiny, and threads that wait for each other on busy cores slow a test down a hundredfold.
torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
