"""Factorized neural layers: low-rank and over-parameterized weights, spectral initialization, Frobenius decay.

    model = factorized.factorize(model, rank_scale=0.1, exclude=["conv1", "fc"])
    decay = factorized.FrobeniusDecay(model, coefficient=1e-4)
    optimizer = torch.optim.SGD(factorized.parameter_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)
    decay.attach(optimizer)
    ...  # train as ever
    factorized.merge(model)  # plain layers again, same outputs

After Khodak, Tenenholtz, Mackey, Fusi, "Initialization and Regularization of Factorized Neural Layers", ICLR 2021.
"""

from .budget import RankScale, find_rank_scale, parameter_count
from .decay import FrobeniusDecay
from .deployment import deploy
from .gradients import frobgrad
from .groups import describe_decay, parameter_groups
from .layers.attention import FactorizedAttention
from .layers.base import FactorizedLayer
from .layers.channel import ChannelConv2d, FactorizedConv1d, FactorizedConv3d
from .layers.composed import ComposedConv2d
from .layers.conv import FactorizedConv2d
from .layers.embedding import FactorizedEmbedding
from .layers.heads import OutputValue, QueryKey
from .layers.linear import FactorizedLinear, FactorizedTransposedLinear
from .layers.tensor import CPConv2d, TensorConv2d, TensorTrainConv2d, TuckerConv2d
from .layers.tucker2 import SeparableConv2d, Tucker2Conv2d
from .layers.weight import ComposedWeight
from .linalg.channels import Tucker2, tucker2
from .linalg.spectral import batch_spectral_init, spectral_init
from .metrics import (
    frobenius_norm,
    frobenius_norms,
    imbalance,
    layer_metrics,
    non_orthogonality,
    nuclear_norm,
    nuclear_norm_bound,
)
from .model import factorize, matrix_of, merge
from .patterns import factorized_modules
from .restructuring import restructure, structure
from .schedule import coefficient_for, decay_budget
from .statistics import Moments, collect, recalibrate
from .store import load, save
from .table import Summary, report, summary

__version__ = "0.2.0"

__all__ = [
    "CPConv2d",
    "ChannelConv2d",
    "ComposedConv2d",
    "ComposedWeight",
    "FactorizedAttention",
    "FactorizedConv1d",
    "FactorizedConv2d",
    "FactorizedConv3d",
    "FactorizedEmbedding",
    "FactorizedLayer",
    "FactorizedLinear",
    "FactorizedTransposedLinear",
    "FrobeniusDecay",
    "Moments",
    "OutputValue",
    "QueryKey",
    "RankScale",
    "SeparableConv2d",
    "Summary",
    "TensorConv2d",
    "TensorTrainConv2d",
    "Tucker2",
    "Tucker2Conv2d",
    "TuckerConv2d",
    "batch_spectral_init",
    "coefficient_for",
    "collect",
    "decay_budget",
    "deploy",
    "describe_decay",
    "factorize",
    "factorized_modules",
    "find_rank_scale",
    "frobenius_norm",
    "frobenius_norms",
    "frobgrad",
    "imbalance",
    "layer_metrics",
    "load",
    "matrix_of",
    "merge",
    "non_orthogonality",
    "nuclear_norm",
    "nuclear_norm_bound",
    "parameter_count",
    "parameter_groups",
    "recalibrate",
    "report",
    "restructure",
    "save",
    "spectral_init",
    "structure",
    "summary",
    "tucker2",
]
