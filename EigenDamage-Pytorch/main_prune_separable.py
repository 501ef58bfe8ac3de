"""Prune by EigenDamage, and take what is left apart into depthwise-separable convolutions; then fine-tune.

    python main_prune_separable.py --from runs/pretrain --target-ratio 0.1

As `main_prune.py --method eigendamage`, after which the k x k core of every smaller layer becomes a depthwise
convolution by a canonical polyadic decomposition (Wang et al. 2019, appendix): 1 x 1, depthwise k x k, 1 x 1.
"""

from lab.cli import launch

# isort: split
import main_prune
from eigendamage.pruning import settings
from eigendamage.pruning.methods import SEPARABLE

from lab.settings import Parser


def main(argv: list[str] | None = None) -> None:
    """Prune as the command line says, and leave the files of each run in its folder."""
    main_prune.run_all(build_parser(), (SEPARABLE,), argv)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    return settings.build_parser("main_prune_separable.py", __doc__, (SEPARABLE,))


if __name__ == "__main__":
    launch(main, "main_prune_separable.py")
