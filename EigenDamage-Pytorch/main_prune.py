"""Prune a network of main_pretrain.py by second-order information, to a share of its size, and fine-tune what is left.

    python main_prune.py --from runs/pretrain --method eigendamage --target-ratio 0.1

After Wang et al. 2019, "EigenDamage: Structured Pruning in the Kronecker-Factored Eigenbasis". The methods are c-obd,
kron-obd, kron-obs, c-obs and eigendamage; activations and hosvd (Tucker-2 by the inputs, or by the weights); and the
controls magnitude and random.
"""

from lab.cli import launch

# isort: split
from collections.abc import Sequence

from eigendamage import data
from eigendamage.pruning import settings
from eigendamage.pruning.methods import METHODS, SEPARABLE
from eigendamage.pruning.rounds import FILES, Cache, Rounds

from lab import devices
from lab.run import Run
from lab.settings import Parser

METHODS_HERE = tuple(name for name in METHODS if name != SEPARABLE)


def main(argv: list[str] | None = None) -> None:
    """Prune as the command line says, and leave the files of each run in its folder."""
    run_all(build_parser(), METHODS_HERE, argv)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    return settings.build_parser("main_prune.py", __doc__, METHODS_HERE)


def run_all(parser: Parser, methods: Sequence[str], argv: list[str] | None) -> None:
    """Do every run that the command line of a program asks for, which knows these methods."""
    cache: Cache = {}
    for plan in settings.plans(parser.parse_args(argv), methods):
        prune(plan, cache)


def prune(plan: settings.Plan, cache: Cache) -> None:
    """Do one run, unless it is finished already."""
    computing = devices.start(plan.args)
    try:
        opened = Run.open(plan.folder, plan.args, computing, FILES)
    except SystemExit:  # which has been said; another run may follow
        return
    with opened:
        batches = data.load(plan.data, plan.args, computing, plan.batch_size)
        Rounds(opened, plan, batches, cache)()


if __name__ == "__main__":
    launch(main, "main_prune.py")
