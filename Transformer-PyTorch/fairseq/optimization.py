"""Which parameters get which decay, and the optimizer that updates them."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from factorized import FrobeniusDecay, coefficient_for, decay_budget, describe_decay, parameter_groups
from lab.cli import UserError, mistakes
from lab.settings import Settings

from .nag import NAG
from .transformer import decayed_modules

# The flag that gives Frobenius decay, in place of weight decay, to each kind of factorized module.
_FLAGS = {"linear": "wd2fd", "quekey": "wd2fd_quekey", "outval": "wd2fd_outval"}

OPTIMIZERS = {
    "nag": lambda groups, args: NAG(groups, args.lr[0], args.momentum),
    "sgd": lambda groups, args: torch.optim.SGD(groups, args.lr[0], args.momentum, fused=True),
    "adam": lambda groups, args: torch.optim.AdamW(groups, args.lr[0], args.adam_betas, args.adam_eps, fused=True),
    "adagrad": lambda groups, args: torch.optim.Adagrad(groups, args.lr[0]),
}


class Optimization(NamedTuple):
    """What changes the parameters after a backward pass."""

    optimizer: Optimizer
    decay: FrobeniusDecay
    """Frobenius decay of the modules that the flags select, perhaps none."""
    description: str
    """What decays what, in words."""


def build(args: Settings, model: nn.Module) -> Optimization:
    """Return the optimizer of `--optimizer` and the decay of the `--wd2fd` flags, with a warning for those in vain.

    The coefficient of Frobenius decay is `--frobenius-decay`, or else `--weight-decay`. The modules that get it leave
    the weight decay, which all other parameters keep, biases and norms among them.
    """
    modules = decayed_modules(model)
    asked = [kind for kind, flag in _FLAGS.items() if getattr(args, flag)]
    chosen = [name for kind in asked for name in modules[kind]]
    coefficient = args.weight_decay if args.frobenius_decay is None else args.frobenius_decay
    _warn_of_vain_flags(args, modules, asked, coefficient)

    groups = parameter_groups(model, args.weight_decay, include=chosen)
    decay = FrobeniusDecay(model, coefficient, include=chosen, strict=False)
    optimizer = OPTIMIZERS[args.optimizer](groups, args)
    return Optimization(optimizer, decay, describe_decay(optimizer, decay))


def settle(args: Settings, rates: Sequence[float] | None) -> tuple[Settings, float | None]:
    """Return the flags with the coefficients that `--decay-budget` leads to, if it is given, and the decay budget.

    The budget is that of Frobenius decay where flags ask for it, which goes through the momentum of nag and sgd, and
    that of weight decay otherwise, which does so in sgd alone. With `--decay-budget` both decays have it.

    Args:
        rates: of all updates; None where nobody knows, and so there is no budget.

    Raises:
        UserError: if a budget is asked for and there is none.
    """
    frobenius = any(getattr(args, flag) for flag in _FLAGS.values())
    rescaled = args.optimizer == "adagrad" or args.optimizer == "adam" and frobenius
    if rates is None or rescaled:
        if args.decay_budget is not None:
            cause = (
                f"{args.optimizer} rescales decay" if rescaled else "how long the run is, and at which rates, is open"
            )
            raise UserError(f"--decay-budget {args.decay_budget:g} has no coefficient: {cause}; give --weight-decay")
        return args, None
    through = 0.0 if args.optimizer == "adam" else args.momentum  # of Frobenius decay, and below of weight decay
    coupled = args.momentum if args.optimizer == "sgd" else 0.0
    if args.decay_budget is not None:
        with mistakes():
            changes = {"weight_decay": coefficient_for(args.decay_budget, rates, coupled)}
            if frobenius:
                changes["frobenius_decay"] = coefficient_for(args.decay_budget, rates, through)
        args = dataclasses.replace(args, decay_budget=None, **changes)
    if not frobenius:
        return args, decay_budget(rates, args.weight_decay, coupled) if coupled < 1 else None
    coefficient = args.weight_decay if args.frobenius_decay is None else args.frobenius_decay
    return args, decay_budget(rates, coefficient, through) if through < 1 else None


def _warn_of_vain_flags(args: Settings, modules: dict[str, list[str]], asked: list[str], coefficient: float) -> None:
    flags = ["--" + _FLAGS[kind].replace("_", "-") for kind in asked]
    if "linear" in asked and not modules["linear"]:
        warnings.warn("--wd2fd selects nothing: there are no two-factor layers without --rank-scale", stacklevel=3)
    if args.spectral and not modules["linear"]:
        warnings.warn("--spectral has no effect: there are no two-factor layers without --rank-scale", stacklevel=3)
    if any(modules[kind] for kind in asked):
        if coefficient == 0:
            message = f"{', '.join(flags)}: the Frobenius decay is 0; give --frobenius-decay or --weight-decay"
            warnings.warn(message, stacklevel=3)
    elif args.frobenius_decay:
        message = f"--frobenius-decay {args.frobenius_decay:g} decays nothing: select modules with --wd2fd-quekey, "
        warnings.warn(f"{message}--wd2fd-outval or, with --rank-scale, --wd2fd", stacklevel=3)
