"""Print the commands of one of the comparisons by method as JSON, a list of words each.

Every setting is trained alone and under a teacher. The first command makes that teacher.

    python -m paper comparison darts > darts.json
    cd deficient-efficient
    jq -r '.[] | @sh' ../darts.json | sh -e
"""

import json
from dataclasses import dataclass

from lab.cli import Parser, launch


@dataclass(frozen=True)
class Comparison:
    """Settings of several methods in one network.

    Attributes:
        program: what starts every training run, up to the mode.
        flags: of every training run.
        teacher: name of the teacher's folder.
        make_teacher: the command that fills it.
        settings: hyper-parameters by convolution class.
    """

    program: tuple[str, ...]
    flags: tuple[str, ...]
    teacher: str
    make_teacher: tuple[str, ...]
    settings: dict[str, tuple[float, ...]]

    def commands(self, name: str) -> list[list[str]]:
        """Return all commands; the runs' folders begin with `name`."""
        found = [list(self.make_teacher)]
        for method, hypers in self.settings.items():
            for hyper in hypers:
                setting = f"{method}_{hyper}"
                folder = f"{name}.{setting.lower()}"
                shared = [*self.flags, "--conv", setting]
                found.append([*self.program, "teacher", *shared, "-t", folder])
                taught = ["-t", self.teacher, "-s", f"{folder}.student", "--alpha", "0", "--beta", "1000"]
                found.append([*self.program, "student", *shared, *taught])
        return found


def _cifar(flags: tuple[str, ...], teacher: str, dense: str, settings: dict) -> Comparison:
    """Return a comparison on CIFAR-10, whose teacher has convolutions of the class `dense`."""
    program = ("python", "main.py", "cifar10")
    return Comparison(program, flags, teacher, (*program, "teacher", *flags, "--conv", dense, "-t", teacher), settings)


COMPARISONS = {
    "wrn_28_10": _cifar(
        ("--wrn_depth", "28", "--wrn_width", "10"), "wrn_28_10.patch", "Conv",
        {
            "Generic": (0.03, 0.1, 0.24), "Tucker": (0.21, 0.41, 0.67), "TensorTrain": (0.23, 0.44, 0.7),
            "Shuffle": (1, 3, 7),
        },
    ),
    "darts": _cifar(
        ("--network", "DARTS"), "darts.teacher", "Sep",
        {
            "Generic": (0.03, 0.06, 0.12), "Tucker": (0.24, 0.37, 0.54), "TensorTrain": (0.27, 0.41, 0.59),
            "Shuffle": (1, 2, 4),
        },
    ),
    "wrn_50_2": Comparison(
        ("torchrun", "--nproc-per-node", "4", "main.py", "imagenet"), ("--network", "WRN_50_2"),
        "wrn_50_2.imagenet.modelzoo",
        ("python", "import_teacher.py", "-t", "wrn_50_2.imagenet.modelzoo"),
        {"Generic": (0.03, 0.21), "Tucker": (0.25, 0.73), "TensorTrain": (0.27, 0.75), "Shuffle": (7, 1)},
    ),
}  # fmt: skip


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m paper comparison", description=__doc__.splitlines()[0])
    parser.add_argument("comparison", choices=list(COMPARISONS), help="network, on CIFAR-10 or (wrn_50_2) ImageNet")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the list that the command line names."""
    name = build_parser().parse_args(argv).comparison
    print(json.dumps(COMPARISONS[name].commands(name), indent=1))


if __name__ == "__main__":
    launch(main, "python -m paper comparison")
