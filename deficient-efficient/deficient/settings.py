"""The command line of `main.py`: its flags, what they are where they are not given, and which do not go together."""

import argparse
import json
from pathlib import Path

from lab import devices, flags
from lab.cli import Parser, UserError, number

from . import convs, networks
from .networks import RECIPES, Config

DATA_DIR = Path(__file__).resolve().parent.parent.parent / "data"
DATASETS = ("cifar10", "cifar100", "imagenet", "digits")
STUDENT, TEACHER = "student", "teacher"


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="main.py", description="Train WideResNets and others with structured convolutions.")
    add = parser.add_argument
    count, positive, real = number(int, least=0), number(int, least=1), number(float, least=0)
    share = number(float, least=0, most=1)
    # fmt: off
    add("dataset", choices=DATASETS, help="data set; it also fixes normalization and augmentation")
    add("mode", choices=(STUDENT, TEACHER), help="teacher: ordinary training; student: under a trained teacher")
    add("--data", metavar="NAME|DIR", help="images in place of the named set: digits, or a folder with train/CLASS/* "
        "and test/CLASS/*; or where data sets are kept")
    add("--data-dir", type=Path, default=DATA_DIR, help="where data sets are kept (default: data/ of the repository)")
    add("--holdout", type=count, default=0, metavar="N", help="validate on N training images, not on the test images")
    add("--imagenet_loc", type=Path, metavar="DIR", help="folder with train/CLASS/* and val/CLASS/* (default: imagenet "
        "where data sets are kept)")
    add("--workers", type=count, help="processes that load imagenet (default of the network); others live in memory")
    add("--resume", "-r", nargs="?", choices=("auto",), const="auto", default="",
        help="continue the run in the folder, if any")
    add("--GPU", dest="device", default=argparse.SUPPRESS, help="the old name of --device")
    add("--student_checkpoint", "-s", type=Path, default=Path("wrn_40_2_student_KT"), metavar="DIR",
        help="folder of the student's run (default wrn_40_2_student_KT)")
    add("--teacher_checkpoint", "-t", type=Path, default=Path("wrn_40_2_T"), metavar="DIR",
        help="folder of the teacher's run; in student mode also a checkpoint file (default wrn_40_2_T)")
    add("--network", choices=list(RECIPES), default="WideResNet", help="network (default WideResNet)")
    add("--wrn_depth", type=number(int, least=1, most=10_000), default=40,
        help="depth of a WideResNet, 6n + 4 (default 40)")
    add("--wrn_width", type=number(float, above=0), default=2, help="widening factor of a WideResNet (default 2)")
    add("--module", metavar="FILE", help="Python file, which is run, with a class Conv, and Block if need be; used "
        "without --conv, and for a teacher that was trained with one")
    add("--blocktype", choices=("Basic",), default="Basic", help="block of a WideResNet")
    add("--conv", help=f"class of convolutions, Name or Name_hyper: {', '.join(convs.KINDS)}")
    add("--AT_split", type=positive, default=1, help="attention taps per stage of a WideResNet (default 1)")
    add("--budget", type=positive, help="choose the hyper-parameter of --conv NAME for so many parameters")
    add("--lr", type=real, help="initial learning rate (default of the network)")
    add("--momentum", type=share, default=0.9, help="momentum of SGD (default 0.9)")
    add("--lr_decay_ratio", type=number(float, above=0), help="factor of the rate at each of --epoch_step")
    add("--temperature", type=number(float, above=0), default=4.0, help="of distillation (default 4)")
    add("--alpha", type=share, default=0.0, help="share of distillation in the classification loss (default 0)")
    add("--aux_loss", choices=("AT",), default="AT", help="attention transfer, the only one there is")
    add("--beta", type=real, default=1000.0, help="weight of attention transfer (default 1000)")
    add("--kl_reduction", choices=("mean", "batchmean"), default="mean",
        help="mean of the distillation loss: over images and classes (default), or images")
    add("--auxiliary_weight", type=real, help="of DARTS' auxiliary loss, e.g. 0.4 (default: half and half)")
    add("--epoch_step", type=_milestones, metavar="JSON", help="epochs at which the rate falls, e.g. [60,120,160]")
    add("--epochs", type=positive, help="number of epochs (default of the network)")
    add("--print_freq", type=positive, default=10, help="batches between readings of the loss (default 10)")
    add("--batch_size", type=positive, help="images per step (default of the network)")
    flags.add_decay(parser, "--weight_decay", help="coefficient of L2 and Frobenius decay (default of the network)")
    add("--nocrswd", action="store_true", help="no scaling of structured parameters' decay by the compression ratio")
    add("--clip_grad", type=number(float, above=0), metavar="NORM", help="clip gradients, before Frobenius decay")
    # fmt: on
    flags.add_flags(parser)
    devices.add_flags(parser)
    return parser


def _milestones(text: str) -> list[int]:
    try:
        steps = json.loads(text)
        ascending = all(isinstance(step, int) and step > 0 for step in steps) and sorted(set(steps)) == steps
    except (ValueError, TypeError):
        ascending = False
    if not ascending:
        raise argparse.ArgumentTypeError(f"must be a list of ascending epochs, like [60,120,160], not {text}")
    return steps


def complete(args: argparse.Namespace) -> None:
    """Fill in what was not given, from the network's recipe.

    Raises:
        UserError: for values that contradict or need each other, or that make no network.
    """
    recipe = RECIPES[args.network]
    if recipe.epoch_step is None:
        for name in ("epoch_step", "lr_decay_ratio"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} has no effect on {args.network}, whose rate follows a cosine")
    for name in ("batch_size", "epochs", "lr", "weight_decay", "workers", "lr_decay_ratio"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(recipe, name))
    if args.epoch_step is None and recipe.epoch_step:
        args.epoch_step = list(recipe.epoch_step)
    if args.mode == STUDENT and args.teacher_checkpoint.resolve() == args.student_checkpoint.resolve():
        raise UserError(f"-t and -s are the same folder, {args.student_checkpoint}")
    try:
        _check_structure(args)
        if args.budget:
            args.conv = networks.conv_for_budget(config(args, ("?",) * 10), args.budget)
        if args.conv or args.mode == TEACHER:  # running a student's module is left to building it
            networks.count(config(args, ("?",) * 10))
    except ValueError as error:
        raise UserError(error) from None


def _check_structure(args: argparse.Namespace) -> None:
    if args.conv is None and args.module is None:
        raise ValueError("give --conv, the class of convolutions, or --module")
    if args.budget and (args.conv is None or flags.is_factorized(args)):
        raise ValueError("--budget chooses the hyper-parameter of --conv NAME and goes with no rank scale or ratio")
    if args.auxiliary_weight is not None and args.network != "DARTS":
        raise ValueError(f"--auxiliary_weight has no effect on {args.network}, which has no auxiliary head")
    if args.rank_path != "auto" and not flags.is_factorized(args):
        raise ValueError("--rank-path has no effect without --rank-scale or --target-ratio")
    kind = convs.KINDS.get(args.conv) if args.budget else convs.split(args.conv)[0] if args.conv else None
    low_rank = flags.is_factorized(args)
    flags.check(args, structured=not low_rank and args.conv != "Conv")
    if low_rank and (args.conv != "Conv" or args.network != "WideResNet"):
        raise ValueError(
            "--rank-scale and --target-ratio make a WideResNet with --conv Conv low-rank; "
            f"they do not go with {args.network} and --conv {args.conv}"
        )
    if kind is None or low_rank or args.conv == "Conv":
        return
    if args.wd2fd and not kind.frobenius:
        raise ValueError(f"--wd2fd: Frobenius decay is not defined for {args.conv}; leave it to the default decay")
    if args.spectral and not kind.spectral:
        raise ValueError(f"--spectral: there is no spectral initialization of {args.conv}")


def config(args: argparse.Namespace, classes: tuple[str, ...], rank_scale: float = 0.0) -> Config:
    """Return the network that the flags ask for."""
    return Config(
        network=args.network, classes=classes, conv=args.conv, module=None if args.conv else args.module,
        depth=args.wrn_depth, width=args.wrn_width, splits=args.AT_split, rank_scale=rank_scale,
    )  # fmt: skip
