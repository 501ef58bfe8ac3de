"""Prune by EigenDamage, and take what is left apart into depthwise-separable convolutions; then fine-tune.

    python main_prune_separable.py --from runs/pretrain --target-ratio 0.1

As `main_prune.py --method eigendamage`, after which the k x k core of every smaller layer becomes a depthwise
convolution by a canonical polyadic decomposition (Wang et al. 2019, appendix): 1 x 1, depthwise k x k, 1 x 1.
"""

from lab.cli import run

# isort: split
import main_prune
from eigendamage.pruning.methods import SEPARABLE


def main(argv: list[str] | None = None) -> None:
    """Prune as the command line says, and leave the files of each run in its folder."""
    main_prune.run_all("main_prune_separable.py", __doc__, (SEPARABLE,), argv)


if __name__ == "__main__":
    run(main, "main_prune_separable.py")
