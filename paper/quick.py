"""The studies at a scale for two cores: all methods on small data for few epochs, so that tables and figures fill.

The numbers say little about the methods, whose effects take longer. The decay budget of a run, the sum of
lr * coefficient / (1 - momentum) over all steps, is a tenth of that of the whole training: with the whole of it,
spent in a three-hundredth of the steps, networks stay at chance.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .compression import COMPRESSION
from .resnet import RESNET
from .scripts import values
from .setting import Command, Setting, Study
from .tensors import TENSOR
from .translation import TRANSLATION

# Decay budget of a whole training for each unit of the coefficient: steps an epoch times the sum of the rates of all
# epochs, over 1 - momentum. Rates fall at 100 and 150 of 200 epochs; of WideResNets to a fifth at 60, 120 and 160.
_CIFAR = 391 * (100 * 0.1 + 50 * 0.01 + 50 * 0.001) / (1 - 0.9)
_WIDE = 391 * (60 * 0.1 + 60 * 0.02 + 40 * 0.004 + 40 * 0.0008) / (1 - 0.9)
# 4,000 updates at 0.25, then 96,000 as the inverse square root. The momentum, 0.99, acts on Frobenius decay alone.
_TRANSLATION = 0.25 * (4000 + 2 * 4000**0.5 * (100_000**0.5 - 4000**0.5))

_SHARE = 0.1  # of the decay budget

_IMAGES = {"data": "digits16", "epochs": "5", "batch-size": "32"}


@dataclass(frozen=True)
class Quick:
    """How a study becomes quick.

    Attributes:
        change: returns a setting as it is then.
        keeps: tells which settings of the grid it has; all methods are among them.
        prepare: program and arguments that make its data, in the folder of the study.
        prepared: the file that they make last.
    """

    change: Callable[[Setting], Setting]
    keeps: Callable[[Setting], bool] = lambda setting: True
    prepare: tuple[str, ...] = ()
    prepared: str = ""

    def settings(self, study: Study) -> tuple[Setting, ...]:
        """Return the settings that it has of the study, without those that call what earlier ones do."""
        found: dict[tuple, Setting] = {}
        for setting in map(self.change, filter(self.keeps, study.settings)):
            found.setdefault(_call(setting), setting)
        return tuple(found.values())


def _call(setting: Setting) -> tuple:
    """Return what a setting calls, wherever its results are."""
    known = {**values(setting, 0, ""), "LOGDIR": ""}
    return tuple(tuple(known.get(token.removeprefix("$"), token) for token in c.argv) for c in setting.commands)


def _decayed(setting: Setting, flag: str, budget: float) -> dict[str, str | None]:
    """Return the flags that put a share of a whole training's budget of decay in the place of a coefficient.

    Args:
        flag: of the coefficient, which must be there.
        budget: for each unit of it.
    """
    argv = setting.commands[0].argv
    token = argv[Command.position(flag, argv) + 1]
    coefficient = float(dict(setting.variables).get(token.removeprefix("$"), token))
    return {flag: None, "decay-budget": f"{_SHARE * budget * coefficient:.3g}"} if coefficient else {}


def _resnet(setting: Setting) -> Setting:
    return setting.with_flags({"arch": "resnet20", **_IMAGES, **_decayed(setting, "weight-decay", _CIFAR)})


def _compression(setting: Setting) -> Setting:
    vgg = dict(setting.variables)["MODEL"] == "vgg"
    small = {"dataset": "digits", "epoch": "2", "depth": "11"} if vgg else {"depth": "8"}
    flags = {"dataset": "digits16", "epoch": "5", "batch-size": "32", **small}
    return setting.with_flags({**flags, **_decayed(setting, "weight-decay", _CIFAR)})


def _tensor(setting: Setting) -> Setting:
    small = {"wrn-depth": "10", "wrn-width": "2", "epoch-step": "[2,3,4]"}
    return setting.with_flags({**_IMAGES, **small, "decay-budget": f"{_SHARE * _WIDE * 5e-4:.3g}"})


def _translation(setting: Setting) -> Setting:
    frobenius = Command.position("frobenius-decay", setting.commands[0].argv) < len(setting.commands[0].argv)
    flag, budget = ("frobenius-decay", _TRANSLATION / (1 - 0.99)) if frobenius else ("weight-decay", _TRANSLATION)
    small = {"max-tokens": "1000", "max-update": "300", "hidden-size": "64", "filter-size": "128", "num-layers": "1"}
    variables = tuple((name, f"{_NUMBERS}/data-bin/numbers.de-en" if name == "DATA" else value)
                      for name, value in setting.variables)  # fmt: skip
    flags = {**small, "num-heads": "2", **_decayed(setting, flag, budget)}
    return replace(setting, variables=variables).with_flags(flags)


def _in_translation(setting: Setting) -> bool:
    values = dict(setting.variables)
    return float(values["SCALE"]) in (0, 0.5) and float(values["DECAY"]) in (0, 1e-6, 1e-5, 1e-4, 1e-3)


_NUMBERS = "../data/quick"  # as seen from the study's folder

QUICK = {
    RESNET.folder: Quick(_resnet),
    COMPRESSION.folder: Quick(_compression),
    TENSOR.folder: Quick(_tensor),
    TRANSLATION.folder: Quick(
        _translation,
        _in_translation,
        ("data/make-numbers.py", "--train", "4000", "--valid", "100", "--test", "200", "--merges", "100", "--destdir",
         _NUMBERS),
        f"{_NUMBERS}/data-bin/numbers.de-en/test.de-en.en.idx",
    ),
}  # fmt: skip
