"""The networks by name: their recipes, how they are built from a configuration, and how many parameters they have."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from factorized import factorize, parameter_count

from .convs import KINDS, MakeConv, conv_class
from .darts import DARTS
from .substituted import MobileNetV2, WideResNet50
from .wide_resnet import BLOCK_CONVS, BasicBlock, WideResNet


@dataclass(frozen=True)
class Recipe:
    """The training settings that a network has where the command line does not say otherwise."""

    batch_size: int = 128
    epochs: int = 200
    lr: float = 0.1
    weight_decay: float = 5e-4
    workers: int = 2
    epoch_step: tuple[int, ...] | None = (60, 120, 160)
    """The epochs at which the rate falls; None for a cosine to zero."""
    lr_decay_ratio: float = 0.2
    drop_path: float = 0.0
    """The probability of dropping a path at the end of training."""


RECIPES = {
    "WideResNet": Recipe(),
    "WRN_50_2": Recipe(256, 90, weight_decay=1e-4, workers=16, epoch_step=(30, 60), lr_decay_ratio=0.1),
    "MobileNetV2": Recipe(256, 150, lr=0.05, weight_decay=4e-5, workers=16, epoch_step=None),
    "DARTS": Recipe(96, 600, lr=0.025, weight_decay=3e-4, epoch_step=None, drop_path=0.2),
}


@dataclass(frozen=True)
class Config:
    """All that it takes to build a network again; a checkpoint holds it as a dictionary."""

    network: str
    classes: tuple[str, ...]
    conv: str | None = "Conv"
    """The class of convolutions; None if it comes from `module`."""
    module: str | None = None
    depth: int = 40
    width: float = 2
    splits: int = 1
    rank_scale: float = 0.0
    """The rank scale of a WideResNet's dense convolutions in low-rank form; 0 leaves them dense."""

    def to_dict(self) -> dict:
        """Return plain values."""
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Return what `to_dict` came from.

        Raises:
            ValueError: if the values are of something else.
        """
        try:
            config = cls(**{**values, "classes": tuple(values["classes"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a network's configuration ({error})") from None
        kinds = {
            "conv": (str, type(None)),
            "module": (str, type(None)),
            "width": (int, float),
            "rank_scale": (int, float),
        }
        kinds |= {"network": str, "classes": tuple, "depth": int, "splits": int}
        for name, kind in kinds.items():
            value = getattr(config, name)
            if not isinstance(value, kind) or isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"not a network's configuration (its {name} is {value!r})")
        if not all(isinstance(name, str) for name in config.classes):
            raise ValueError("not a network's configuration (its classes have no names)")
        if config.network not in RECIPES:
            raise ValueError(f"unknown network {config.network}")
        return config


def build(config: Config, *, spectral: bool = False, rank_path: str = "auto") -> nn.Module:
    """Return a freshly started network.

    Raises:
        ValueError: if the configuration makes no network.
    """
    conv, block = _design(config)
    count = len(config.classes)
    if config.network != "WideResNet":
        return _OTHERS[config.network](conv, count, spectral=spectral)
    low_rank = config.rank_scale > 0
    model = WideResNet(
        config.depth, config.width, conv, count, splits=config.splits, block=block, spectral=spectral and not low_rank
    )
    if low_rank:
        scale, include = config.rank_scale, BLOCK_CONVS
        start = "spectral" if spectral else "fan_out"
        factorize(model, rank_scale=scale, rule="paper", include=include, init=start, path=rank_path)
    return model


_OTHERS: dict[str, Callable[..., nn.Module]] = {"WRN_50_2": WideResNet50, "MobileNetV2": MobileNetV2, "DARTS": DARTS}


def count(config: Config) -> int:
    """Return the parameters of a network without building more than its shapes; draws no random numbers.

    Raises:
        ValueError: as `build`.
    """
    return parameter_count(skeleton(config))


def skeleton(config: Config) -> nn.Module:
    """Return a network without values, on the meta device; draws no random numbers."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build(config)


def reference(config: Config) -> Config:
    """Return the network that a compressed one is compared with: of dense convolutions (DARTS: separable ones)."""
    return replace(config, conv="Sep" if config.network == "DARTS" else "Conv", module=None, rank_scale=0.0)


def conv_for_budget(config: Config, budget: int) -> str:
    """Return the class of the family `config.conv` whose network has nearest to `budget` parameters.

    Raises:
        ValueError: if the family has no hyper-parameter, or no network of about so many parameters; or as `build`.
    """
    name = config.conv
    kind = KINDS.get(name)
    if kind is None or not kind.hyper:
        families = ", ".join(known for known, kind in KINDS.items() if kind.hyper)
        raise ValueError(f"--budget chooses the hyper-parameter of one of {families}, not of {name}")

    tried: dict[float, int] = {}  # parameters too many, by hyper-parameter

    def is_small(hyper: float) -> bool:
        try:
            tried[hyper] = count(replace(config, conv=f"{name}_{hyper}")) - budget
        except ValueError:  # too small for some layer, or impossible for another reason
            return True
        return tried[hyper] < 0

    if kind.whole:
        for hyper in range(int(kind.least), _MOST_WHOLE + 1):
            is_small(hyper)
    else:
        lower, upper = 0.0, 1.0
        is_small(upper)
        while upper - lower > 1e-4:
            middle = round((lower + upper) / 2, 6)
            lower, upper = (middle, upper) if is_small(middle) else (lower, middle)
    if not tried:
        count(replace(config, conv=f"{name}_{_MOST_WHOLE if kind.whole else 1.0}"))  # says what is impossible
    least, most = budget + min(tried.values()), budget + max(tried.values())
    if not _NEAR * least <= budget <= most / _NEAR:
        raise ValueError(f"{name} makes this network of {least:,} to {most:,} parameters, not of {budget:,} (--budget)")
    return f"{name}_{min(tried, key=lambda hyper: abs(tried[hyper]))}"


_MOST_WHOLE = 32  # groups or layers that a budget is searched among
_NEAR = 0.99  # a budget just out of reach is met by the nearest network


def _design(config: Config) -> tuple[MakeConv, type[nn.Module]]:
    """Return the class of convolutions and that of a WideResNet's blocks."""
    if config.conv is not None:
        return conv_class(config.conv), BasicBlock
    path = Path(config.module)
    spec = importlib.util.spec_from_file_location("_conv_module", path)
    if spec is None or not path.is_file():
        raise ValueError(f"--module {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"--module {path} cannot be loaded ({type(error).__name__}: {error})") from None
    if not hasattr(module, "Conv"):
        raise ValueError(f"--module {path} defines no class Conv")
    return module.Conv, getattr(module, "Block", BasicBlock)
