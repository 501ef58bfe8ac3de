"""PyTorch's quantization goes by the types of layers: it skips factorized ones, and is not silent about that."""

import copy
import warnings

import pytest
import torch
from torch import nn

from factorized import FactorizedLinear, TensorTrainConv2d, factorize, merge

quantization = pytest.importorskip("torch.ao.quantization")
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:.*TypedStorage", "ignore:.*reduce_range")
NO_ENGINE = pytest.mark.skipif(
    torch.backends.quantized.engine in ("", "none", None), reason="this build of PyTorch cannot quantize"
)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


@NO_ENGINE
def test_dynamic_quantization_says_what_it_skips():
    model = factorize(dense(), rank_scale=0.5, exclude=["2"])
    with pytest.warns(UserWarning, match=r"leaves them as they are.*merge\(model\) before"):
        quantized = quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert type(quantized[0]) is FactorizedLinear and type(quantized[2]) is not nn.Linear
    x = torch.randn(3, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*(deprecated|TypedStorage|reduce_range)")
        merged = quantization.quantize_dynamic(merge(model), {nn.Linear})
    assert not any(type(layer) is nn.Linear for layer in merged)
    torch.testing.assert_close(merged(x), model(x), rtol=0.1, atol=0.1)


def test_preparation_says_what_it_will_skip():
    model = nn.Sequential(factorize(dense(), rank_scale=0.5), TensorTrainConv2d(4, 4, 3, 0.5)).train()
    model.qconfig = quantization.default_qconfig
    with pytest.warns(UserWarning, match="knows nothing of factorized layers"):
        quantization.prepare_qat(model)
