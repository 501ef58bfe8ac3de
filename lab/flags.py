"""The flags that several programs share, each by one name and with one meaning, and the factorization they ask for."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from factorized import factorize, find_rank_scale, parameter_count
from factorized.cost import PATHS

from . import ROOT
from .cli import mistakes, number
from .settings import Settings, flag

DATA_DIR = ROOT / "data"
COUNT, POSITIVE = number(int, least=0), number(int, least=1)
REAL, SHARE = number(float, least=0), number(float, least=0, most=1)


# -- flags whose defaults differ among the programs: fields for their settings ----------------------------------------


def data(default: str | None, *names: str, help: str) -> Any:
    """Return the field of `--data`, the data set."""
    return flag("data", *names, default=default, metavar="NAME|DIR", help=help)


def data_dir() -> Any:
    """Return the field of `--data-dir`."""
    text = "where data sets are kept (default: data/ of the repository)"
    return flag("data", default=DATA_DIR, metavar="DIR", help=text)


def save_dir(default: str, *names: str) -> Any:
    """Return the field of `--save-dir`."""
    return flag("run", *names, default=Path(default), metavar="DIR", help="folder of the run")


def epochs(default: int | None, *names: str, least: int = 1, help: str = "number of epochs") -> Any:
    """Return the field of `--epochs`."""
    return flag("optimization", *names, default=default, type=number(int, least=least), metavar="N", help=help)


def batch_size(default: int | None, *names: str, help: str = "images per step, over all processes") -> Any:
    """Return the field of `--batch-size`."""
    return flag("optimization", "-b", *names, default=default, type=POSITIVE, metavar="N", help=help)


def lr(default: float | None, *names: str, help: str = "learning rate at the start") -> Any:
    """Return the field of `--lr`."""
    return flag("optimization", "--learning-rate", *names, default=default, type=REAL, metavar="LR", help=help)


def weight_decay(default: float | None, help: str = "coefficient of L2 and Frobenius decay") -> Any:
    """Return the field of `--weight-decay`."""
    return flag("optimization", "--wd", default=default, type=REAL, metavar="W", one_of="decay", help=help)


def resume(*names: str, default: str = "", help: str = "checkpoint to go on from; auto: that of --save-dir, if any",
           **options: Any) -> Any:  # fmt: skip
    """Return the field of `--resume`."""
    return flag("run", *names, default=default, metavar="FILE|auto", help=help, **options)


# -- flags that are the same everywhere -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Images(Settings):
    """Where images come from, and which of them are held out."""

    data_dir: Path = data_dir()
    holdout: int = flag("data", default=0, type=COUNT, metavar="N",
        help="validate on N training images, not on the test images")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rank(Settings):
    """Which ranks a factorized network has; contradictions are a ValueError."""

    rank_scale: float = flag("factorization", default=0.0, type=REAL, metavar="S",
        help="rank as a fraction of a dimension; 0 is dense")  # fmt: skip
    target_ratio: float = flag("factorization", default=0.0, type=REAL, metavar="R",
        help="or find the scale for this share of the parameters; 0 is dense")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("--rank-scale", self.rank_scale), ("--target-ratio", self.target_ratio)):
            if not (0 <= value and math.isfinite(value)):
                raise ValueError(f"{name} must be a number of at least 0, not {value}")
        if self.rank_scale and self.target_ratio:
            raise ValueError("give --rank-scale or --target-ratio, not both")


@dataclass(frozen=True, kw_only=True)
class Factorized(Rank):
    """How a network is factorized, and how its factors start and are decayed; contradictions are a ValueError."""

    strict: bool = flag("factorization", default=False, help="an unreachable --target-ratio is an error, not a warning")
    spectral: bool = flag("factorization", default=False, help="spectral initialization of the factors")
    wd2fd: bool = flag("factorization", default=False, help="Frobenius decay instead of L2 decay on factorized layers")
    rank_path: str = flag("factorization", default="auto", choices=PATHS, help="how factorized layers run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_factorized(self) and not self.is_structured():
            self.require("--rank-scale or --target-ratio", "spectral", "wd2fd")
        if not self.target_ratio:
            self.require("--target-ratio", "strict")

    def is_structured(self) -> bool:
        """Return whether the network has factorized layers without `--rank-scale` or `--target-ratio`."""
        return False


@dataclass(frozen=True, kw_only=True)
class Decay(Settings):
    """The decay budget, in place of a coefficient. `--weight-decay` itself has another default in every program."""

    decay_budget: float | None = flag("optimization", default=None, type=number(float, above=0), metavar="B",
        one_of="decay", help="or find the coefficient for this sum of lr * coefficient / (1 - momentum) over all "
        "steps, such as 4")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Overwrite(Settings):
    """What becomes of an earlier run."""

    overwrite: bool = flag("run", default=False, help="replace the run that --save-dir holds")


@dataclass(frozen=True, kw_only=True)
class Computing(Settings):
    """Where and how to compute, and with which random numbers; `devices.start` acts on it."""

    seed: int = flag("run", default=0, type=number(int, least=0, most=2**63 - 1), metavar="N",
        help="seed of all random numbers")  # fmt: skip
    device: str = flag("speed", default="auto", help="auto (a GPU if there is one), cpu, cuda, or a GPU's number")
    amp: str = flag("speed", default="off", choices=("off", "bf16", "fp16"), help="mixed precision by autocast")
    deterministic: bool = flag("speed", default=False, help="only deterministic algorithms on the GPU, slower")


@dataclass(frozen=True, kw_only=True)
class Training(Computing):
    """Where and how to train."""

    compile: bool = flag("speed", default=False, help="run the network through torch.compile")


@dataclass(frozen=True, kw_only=True)
class ImageTraining(Training):
    """Where and how to train on images."""

    channels_last: bool | None = flag("speed", default=None, action=argparse.BooleanOptionalAction,
        help="keep images and kernels in channels-last order (default on a CPU, where it is faster)")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trainer(Images, Factorized, Decay, Overwrite, ImageTraining):
    """What the trainers of image classifiers share. Their own settings add the flags whose defaults differ."""


# -- what they ask for ------------------------------------------------------------------------------------------------


class Factorization(NamedTuple):
    """What `apply` did to a model."""

    original: int
    """The number of parameters of the dense model."""
    compressed: int
    """The number of parameters now."""
    rank_scale: float
    """The rank scale; 0 for a model left dense."""

    @property
    def ratio(self) -> float:
        """`compressed / original`."""
        return self.compressed / self.original


def is_factorized(settings: Any) -> bool:
    """Return whether the flags ask for a factorized network."""
    return bool(settings.rank_scale or settings.target_ratio)


def apply(model: nn.Module, settings: Any, init: str = "kaiming", **options: Any) -> tuple[nn.Module, Factorization]:
    """Factorize `model` as the flags of `Factorized` ask, by the paper's rule, or leave it dense; count, too.

    Args:
        init: how factors start without `--spectral`, as for `factorize`.
        options: further arguments of `factorize`; those that choose layers and form also guide the search for a ratio.

    Raises:
        UserError: as `factorize` and `find_rank_scale` raise a ValueError.
    """
    original = parameter_count(model)
    rank_scale = settings.rank_scale
    with mistakes():
        if settings.target_ratio:
            searched = {name: options[name] for name in ("include", "exclude", "square") if name in options}
            rank_scale = find_rank_scale(model, settings.target_ratio, strict=settings.strict, **searched).rank_scale
        if rank_scale:
            init = "spectral" if settings.spectral else init
            options |= {"rule": "paper", "init": init, "path": settings.rank_path}
            model = factorize(model, rank_scale=rank_scale, **options)
    return model, Factorization(original, parameter_count(model), rank_scale)
