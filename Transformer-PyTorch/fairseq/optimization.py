"""Which parameters get which decay, and the optimizer that updates them."""

import warnings
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from factorized import FrobeniusDecay, parameter_groups
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
    description: list[str]
    """Lines about optimizer and decay."""


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
    plain, free = (f"{len(g['params'])} tensors, {sum(p.numel() for p in g['params']):,} parameters" for g in groups)
    description = [f"| weight decay {args.weight_decay:g}: {plain}"]
    if chosen:
        origin = ", the value of --weight-decay since --frobenius-decay is not given"
        origin = origin if args.frobenius_decay is None else ""
        where = f"{len(chosen)} modules ({' '.join(asked)}), {free}"
        description.append(f"| Frobenius decay {coefficient:g}{origin}: {where}")
    return Optimization(OPTIMIZERS[args.optimizer](groups, args), decay, description)


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
