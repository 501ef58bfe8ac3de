"""The command-line flags that every trainer of factorized networks shares, and what they ask for."""

import argparse
import math
from typing import Any, NamedTuple

from torch import nn

from factorized import factorize, find_rank_scale, parameter_count
from factorized.cost import PATHS

from .cli import number


class Factorization(NamedTuple):
    """What `apply` did to a model."""

    original: int
    """parameters of the dense model"""
    compressed: int
    """parameters now"""
    rank_scale: float
    """0 for a model left dense"""

    @property
    def ratio(self) -> float:
        """`compressed / original`."""
        return self.compressed / self.original


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a trainer's parser."""
    group = parser.add_argument_group("factorization")
    group.add_argument("--rank-scale", type=float, default=0.0, help="rank as a fraction of a dimension; 0 is dense")
    group.add_argument("--target-ratio", type=float, default=0.0, help="or find the scale for this share of parameters")
    group.add_argument("--strict", action="store_true", help="an unreachable --target-ratio is an error, not a warning")
    group.add_argument("--spectral", action="store_true", help="spectral initialization of the factors")
    group.add_argument("--wd2fd", action="store_true", help="Frobenius decay instead of L2 decay on factorized layers")
    group.add_argument("--rank-path", choices=PATHS, default="auto", help="how factorized layers run (default auto)")


def add_decay(parser: argparse.ArgumentParser, *names: str, **options) -> None:
    """Add the flag of the decay's coefficient, and the one that may take its place.

    Args:
        names: of the first, which `args` is to have as `weight_decay`.
        options: of it, as argparse takes them.
    """
    one = parser.add_mutually_exclusive_group()
    one.add_argument(*names, dest="weight_decay", type=number(float, least=0), **options)
    one.add_argument(
        "--decay-budget", type=number(float, above=0), metavar="B",
        help="or find the coefficient for this sum of lr * coefficient / (1 - momentum) over all steps, such as 4",
    )  # fmt: skip


def check(args: argparse.Namespace, structured: bool = False) -> None:
    """Check the flags for sense.

    Args:
        structured: the network has factorized layers without any of these flags.

    Raises:
        ValueError: for values out of range and flags that contradict or need each other.
    """
    for flag, value in (("--rank-scale", args.rank_scale), ("--target-ratio", args.target_ratio)):
        if not (0 <= value and math.isfinite(value)):
            raise ValueError(f"{flag} must be a number of at least 0, not {value}")
    if args.rank_scale and args.target_ratio:
        raise ValueError("give --rank-scale or --target-ratio, not both")
    if not is_factorized(args) and not structured:
        require(args, "--rank-scale or --target-ratio", "spectral", "wd2fd")
    if not args.target_ratio:
        require(args, "--target-ratio", "strict")


def require(args: argparse.Namespace, needed: str, *flags: str) -> None:
    """Raise ValueError if one of the switches `flags` is on, saying that it has no effect without `needed`."""
    for flag in flags:
        if getattr(args, flag):
            raise ValueError(f"--{flag.replace('_', '-')} has no effect without {needed}")


def is_factorized(args: argparse.Namespace) -> bool:
    """Return whether the flags ask for a factorized network."""
    return bool(args.rank_scale or args.target_ratio)


def apply(
    model: nn.Module, args: argparse.Namespace, init: str = "kaiming", **options: Any
) -> tuple[nn.Module, Factorization]:
    """Factorize `model` as the flags ask, by the paper's rule, or leave it dense; return it and the counts.

    Args:
        init: how factors start without `--spectral`, as for `factorize`.
        options: further arguments of `factorize`; those that choose layers and form also guide the search for a ratio.

    Raises:
        ValueError: as `factorize` and `find_rank_scale`.
    """
    original = parameter_count(model)
    rank_scale = args.rank_scale
    if args.target_ratio:
        searched = {name: options[name] for name in ("include", "exclude", "square") if name in options}
        rank_scale = find_rank_scale(model, args.target_ratio, strict=args.strict, **searched).rank_scale
    if rank_scale:
        init = "spectral" if args.spectral else init
        model = factorize(model, rank_scale=rank_scale, rule="paper", init=init, path=args.rank_path, **options)
    return model, Factorization(original, parameter_count(model), rank_scale)
