"""Models that nobody here wrote: the cells of benchmarks/coverage.py as tests; most take long and are slow."""

import pytest

from benchmarks.coverage import CHECKS
from benchmarks.zoo import ZOO

QUICK_MODELS = {
    "torchvision vit", "torchvision swin", "timm efficientnet", "timm nfnet", "transformers GPT-2",
    "transformers Llama", "transformers Mixtral", "transformers T5", "transformers wav2vec2",
}  # fmt: skip
QUICK_CHECKS = {"reached", "full rank", "half", "step", "merge", "load", "copy"}


def cells():
    for name in ZOO:
        for check in CHECKS:
            is_quick = name in QUICK_MODELS and check in QUICK_CHECKS
            yield pytest.param(name, check, marks=() if is_quick else pytest.mark.slow)


@pytest.mark.filterwarnings("ignore")  # what the models' own libraries warn of
@pytest.mark.parametrize("name, check", cells())
def test_cell(name, check):
    CHECKS[check](name)
