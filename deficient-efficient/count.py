"""Print the multiply-adds of one image and the parameters of a network.

python count.py cifar10 --wrn_depth 28 --wrn_width 10 --conv TensorTrain_0.234
"""

from lab.cli import Parser, UserError, number, run

# isort: split
from deficient import settings
from deficient.counting import multiply_adds
from deficient.darts import DARTS
from deficient.networks import RECIPES, Config, skeleton
from deficient.wide_resnet import BLOCK_CONVS

from factorized import find_rank_scale, parameter_count

CLASSES = {"cifar10": 10, "digits": 10, "cifar100": 100, "imagenet": 1000}


def build_parser() -> Parser:
    """Return the parser of the command line; its flags are those of `main.py`."""
    parser = Parser(prog="count.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("dataset", choices=settings.DATASETS, help="it fixes the size of images and the number of classes")
    add("--network", choices=list(RECIPES), default="WideResNet", help="network (default WideResNet)")
    add("--wrn_depth", type=number(int, least=1, most=10_000), default=40, help="depth of a WideResNet (default 40)")
    add("--wrn_width", type=number(float, above=0), default=2, help="widening factor of a WideResNet (default 2)")
    add("--module", metavar="FILE", help="Python file, which is run, with a class Conv")
    add("--blocktype", choices=("Basic",), default="Basic", help="block of a WideResNet")
    add("--conv", help="class of convolutions, as for main.py")
    add("--rank-scale", type=number(float, least=0), default=0.0, help="of a low-rank WideResNet with --conv Conv")
    add("--target-ratio", type=number(float, least=0), default=0.0, help="or the share of parameters it is to have")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Count as the command line says."""
    args = build_parser().parse_args(argv)
    if args.conv is None and args.module is None:
        raise UserError("give --conv, the class of convolutions, or --module")
    low_rank = args.rank_scale or args.target_ratio
    if low_rank and (args.conv != "Conv" or args.network != "WideResNet" or args.rank_scale and args.target_ratio):
        raise UserError("give --rank-scale or --target-ratio, with a WideResNet and --conv Conv")
    classes = tuple(map(str, range(CLASSES[args.dataset])))
    shape = {"depth": args.wrn_depth, "width": args.wrn_width}
    module = None if args.conv else args.module
    try:
        if args.target_ratio:
            dense = skeleton(Config(args.network, classes, args.conv, module, **shape))
            args.rank_scale = find_rank_scale(dense, args.target_ratio, include=BLOCK_CONVS).rank_scale
        model = skeleton(Config(args.network, classes, args.conv, module, **shape, rank_scale=args.rank_scale))
    except ValueError as error:
        raise UserError(error) from None
    if isinstance(model, DARTS):
        model.auxiliary_head = None  # used in training only
    counts = multiply_adds(model, 224 if args.dataset == "imagenet" else 32)
    print(f"Mult-Adds: {counts.total:.5E}")
    print(f"Params: {parameter_count(model):.5E}")
    print(f"To compose kernels, once a batch: {counts.composing:.5E}")
    if counts.unknown:
        print(f"Not counted: {', '.join(counts.unknown)}")


if __name__ == "__main__":
    run(main, "count.py")
