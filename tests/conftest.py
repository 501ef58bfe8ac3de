"""Settings shared by all tests: one thread, a fixed seed before every test, GPU tests only where there is a GPU.

And the attention that tests of the library and of translation ask for.
"""

import pytest
import torch

from factorized import FactorizedAttention
from tests.attention import HEADS, D

# The tensors are tiny, and threads that wait for each other on busy cores slow a test down a hundredfold.
torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=[1.0, 0.5])
def attention(request):
    """A layer with heads of width 4 or 2, in double precision."""
    return FactorizedAttention(D, HEADS, request.param, dtype=torch.float64)
