"""What of a study's grid has not been run yet, described as runs of it will be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .method import method_of
from .setting import Setting, Study


@dataclass(frozen=True)
class Planned:
    """A training of a setting."""

    study: str
    setting: str
    network: str
    data: str
    labels: tuple[tuple[str, str], ...]

    @property
    def command(self) -> str:
        """Return what runs it."""
        return f"python -m paper run {self.study} --only {self.setting}"


def plans_of(study: Study, setting: Setting) -> list[Planned]:
    """Return the trainings of a setting, described as runs of it will be."""
    variables = dict(setting.variables)

    def value(token: str) -> str:
        name = token.removeprefix("$")
        return value(variables[name]) if token.startswith("$") and name in variables else token

    found = []
    for command in setting.commands:
        if command.training:
            flags = _flags([value(token) for token in command.argv])
            found.append(Planned(study.folder, setting.name, *_network_and_data(flags), _labels(flags)))
    return found


def _flags(argv: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command by the names that parsed ones have, True for a switch."""
    flags: dict[str, Any] = {"nocrswd": False} if argv[0] == "main.py" else {}
    tokens = [*argv, "--"]
    for token, after in zip(tokens, tokens[1:]):
        if token.startswith("--"):
            flags[token.removeprefix("--").replace("-", "_")] = True if after.startswith("--") else after
    forms = ("", "_quekey", "_outval") if argv[0] == "train.py" else ()
    switches = {f"{kind}{form}": False for kind in ("spectral", "wd2fd") for form in forms}
    return {**switches, **flags, "position": argv[1]}


def _network_and_data(flags: dict[str, Any]) -> tuple[str, str]:
    if "wrn_depth" in flags:
        return f"WRN-{flags['wrn_depth']}-{flags['wrn_width']}", flags["position"]
    if "network" in flags:
        return f"{flags['network']}{flags['depth']}", flags["dataset"]
    return flags["arch"], flags.get("data") or Path(flags["position"]).name


def _words(flags: dict[str, Any], dense: bool) -> str:
    """Return the method as results of a run have it, as far as the names of methods need it."""
    if "method" in flags:  # of pruning
        return f"pruned: {flags['method']}, {'Frobenius' if flags.get('wd2fd') else 'L2'} decay"
    return "dense" if dense else "low-rank"


def _labels(flags: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    scale, ratio = (float(flags.get(name) or 0) for name in ("rank_scale", "target_ratio"))
    layers = flags.get("conv", "")
    dense = not (scale or ratio or layers not in ("", "Conv"))
    coefficient = flags.get("frobenius_decay") or flags.get("weight_decay") or ""
    return (
        ("layers", "" if dense else layers),
        ("method", method_of({"method": _words(flags, dense)}, flags)),
        ("rank scale", f"{scale:g}" if scale else ""),
        ("target ratio", f"{ratio:g}" if ratio else ""),
        ("decay", f"{float(coefficient):g}" if coefficient else ""),
    )
