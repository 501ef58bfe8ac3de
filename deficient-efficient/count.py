"""Print the multiply-adds of one image and the parameters of a network.

python count.py cifar10 --wrn-depth 28 --wrn-width 10 --conv TensorTrain_0.234
"""

from dataclasses import dataclass, replace

from lab.cli import launch, mistakes

# isort: split
from deficient.counting import multiply_adds
from deficient.darts import DARTS
from deficient.networks import Config, skeleton
from deficient.settings import DATASETS, Network
from deficient.wide_resnet import BLOCK_CONVS

from factorized import find_rank_scale, parameter_count
from lab import flags
from lab.settings import Parser, flag

CLASSES = {"cifar10": 10, "digits": 10, "cifar100": 100, "imagenet": 1000}


@dataclass(frozen=True, kw_only=True)
class Settings(Network, flags.Rank):
    """What is counted; contradictions are a ValueError. The flags are those of `main.py`."""

    data: str = flag("data", "--dataset", words="too", required=True, choices=DATASETS, metavar="NAME",
        help=f"{', '.join(DATASETS)}: it fixes the size of images and the number of classes; also as a word, without "
        "--data")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_low_rank(flags.is_factorized(self))


def build_parser() -> Parser:
    """Return the parser of the command line."""
    return Parser(Settings, prog="count.py", description=__doc__.splitlines()[0])


def main(argv: list[str] | None = None) -> None:
    """Count as the command line says."""
    args = build_parser().parse_args(argv)
    classes = tuple(map(str, range(CLASSES[args.data])))
    module = None if args.conv else args.module
    config = Config(args.network, classes, args.conv, module, depth=args.wrn_depth, width=args.wrn_width)
    with mistakes():
        scale = args.rank_scale
        if args.target_ratio:
            scale = find_rank_scale(skeleton(config), args.target_ratio, include=BLOCK_CONVS).rank_scale
        model = skeleton(replace(config, rank_scale=scale))
    if isinstance(model, DARTS):
        model.auxiliary_head = None  # used in training only
    counts = multiply_adds(model, 224 if args.data == "imagenet" else 32)
    print(f"Mult-Adds: {counts.total:.5E}")
    print(f"Params: {parameter_count(model):.5E}")
    print(f"To compose kernels, once a batch: {counts.composing:.5E}")
    if counts.unknown:
        print(f"Not counted: {', '.join(counts.unknown)}")


if __name__ == "__main__":
    launch(main, "count.py")
