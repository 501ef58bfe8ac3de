"""The command that repeats a run, from its arguments."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from .finished import ASIDE, Run

# The program of each study, and which of its arguments stand without a flag, in order.
PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pytorch_resnet_cifar10": ("trainer.py", ()),
    "EigenDamage-Pytorch": ("main_pretrain.py", ()),
    "deficient-efficient": ("main.py", ("dataset", "mode")),
    "Transformer-PyTorch": ("train.py", ("data",)),
}
_KEPT = {"seed"}  # of those that say nothing about a trial's condition


def command_of(run: Run) -> str:
    """Return the command that repeats a run, as it can be typed into a shell in the repository.

    It names every argument that can change a number, whether or not it is the default today; the folder of the run is
    left to the program.
    """
    program, positions = PROGRAMS[run.study]
    if run.results["method"].startswith("pruned: "):
        program = "main_prune_separable.py" if "separable" in run.results["method"] else "main_prune.py"
    words = [str(run.arguments[name]) for name in positions if run.arguments.get(name) is not None]
    flags = [word for name, value in run.arguments.items() if name not in positions for word in _flag(name, value, run)]
    return f"cd {run.study} && python {program} {shlex.join([*words, *flags])}".rstrip()


def _flag(name: str, value: Any, run: Run) -> list[str]:
    if name in ASIDE - _KEPT or value is None or value is False or value in ("", [], {}):
        return []
    if name == "weight_decay" and run.arguments.get("decay_budget") is not None:
        return []  # which the budget decides
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, _word(value, name)]


def _word(value: Any, name: str) -> str:
    if isinstance(value, Mapping) or name == "epoch_step":
        return json.dumps(value)
    if isinstance(value, list):
        text = ",".join(map(str, value))
        return f"({text})" if name == "adam_betas" else text
    return str(value)
