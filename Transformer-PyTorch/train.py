"""Train a Transformer to translate, dense or factorized (Khodak et al. 2021, section 5). `--help` lists the flags.

    python train.py data-bin/iwslt14.tokenized.de-en --arch transformer_small --rank-scale 0.5 --spectral --wd2fd ...

Killed at any moment, the same command goes on from its last checkpoint.
"""

import argparse
import os
from pathlib import Path

from fairseq import options
from fairseq.config import ARCHITECTURES, POSITIONS, TransformerConfig, architecture
from fairseq.optimization import OPTIMIZERS
from fairseq.schedule import SCHEDULES
from fairseq.training import LAST, train

from lab.cli import Parser, UserError, number, run

SMOOTHED = "label_smoothed_cross_entropy"


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count, positive, real, any_real = options.COUNT, options.POSITIVE, options.REAL, number(float)
    share = number(float, least=0, most=1)
    options.add_data_flags(parser)
    # fmt: off
    add = parser.add_argument_group("what to train and validate on").add_argument
    add("--train-subset", default="train", metavar="SPLIT", help="split to train on (default train)")
    add("--valid-subset", default="valid", metavar="SPLIT,...", help="splits to validate on (default valid)")
    add("--max-sentences-valid", type=positive, metavar="N", help="the same for validation (default: the same)")
    add("--sample-without-replacement", type=count, default=0, metavar="N", help="batches of an epoch (default: all)")
    add("--curriculum", type=count, default=0, metavar="N", help="keep the order of length in the first N epochs")

    add = parser.add_argument_group("model").add_argument
    add("--arch", "-a", required=True, metavar="NAME", help=f"{', '.join(ARCHITECTURES)}; flags change its sizes")
    add("--hidden-size", "--hidden_size", type=positive, metavar="D", help="width of embeddings and layers")
    add("--filter-size", "--filter_size", type=positive, metavar="F", help="width inside the feed-forward networks")
    add("--num-layers", "--num_layers", type=positive, metavar="L", help="layers of the encoder, and of the decoder")
    add("--num-heads", "--num_heads", "--num-head", "--num_head", type=positive, metavar="H", help="attention heads")
    add("--dropout", type=real, metavar="P", help="after embeddings and sublayers (default 0.1)")
    add("--attention-dropout", type=real, metavar="P", help="of attention weights (default 0)")
    add("--relu-dropout", type=real, metavar="P", help="inside the feed-forward networks (default 0.1)")
    add("--position", choices=POSITIONS, help="position embeddings (default learned)")
    add("--share-input-output-embed", action="store_true", help="the output layer uses the target's embeddings")
    add("--no-cross-mask", action="store_true", help="let the decoder attend to source padding, as in 2018")
    options.add_rank_flags(parser)

    add = parser.add_argument_group("optimization").add_argument
    add("--criterion", choices=("cross_entropy", SMOOTHED), default="cross_entropy", help="default cross_entropy")
    add("--label-smoothing", type=share, default=0.0, metavar="E", help=f"with {SMOOTHED}")
    add("--max-epoch", "--me", type=count, default=0, metavar="N", help="stop after epoch N")
    add("--max-update", "--mu", type=count, default=0, metavar="N", help="stop after N updates")
    add("--clip-norm", type=any_real, default=25.0, metavar="C", help="largest gradient norm; 0: any (default 25)")
    add("--sentence-avg", action="store_true", help="divide gradients by sentences, not by target tokens")
    add("--update-freq", type=positive, default=1, metavar="N", help="batches of an update (default 1)")
    add("--optimizer", choices=OPTIMIZERS, default="nag", help="default nag")
    add("--lr", "--learning-rate", type=_rates, default=[0.25], metavar="LR,...", help="rate, or rates of epochs")
    add("--momentum", type=share, default=0.99, metavar="M", help="of nag and sgd (default 0.99)")
    add("--adam-betas", type=_betas, default=[0.9, 0.999], metavar="(B1,B2)", help="default (0.9, 0.999)")
    add("--adam-eps", type=real, default=1e-8, metavar="E", help="default 1e-8")
    add("--weight-decay", "--wd", type=real, default=0.0, metavar="W", help="default 0")
    add("--lr-scheduler", choices=SCHEDULES, default="reduce_lr_on_plateau", help="default reduce_lr_on_plateau")
    add("--warmup-updates", type=count, default=4000, metavar="N", help="of inverse_sqrt; 0: none (default 4000)")
    add("--warmup-init-lr", type=any_real, default=-1.0, metavar="LR", help="first of inverse_sqrt; -1: --lr (default)")
    add("--force-anneal", "--fa", type=count, metavar="N", help="of fixed: shrink the rate from epoch N on")
    add("--lr-shrink", type=share, default=0.1, metavar="S", help="of fixed and reduce_lr_on_plateau (default 0.1)")
    add("--min-lr", type=real, default=1e-5, metavar="LR", help="stop once the rate has fallen to this (default 1e-5)")

    add = parser.add_argument_group("files").add_argument
    add("--save-dir", type=Path, default=Path("checkpoints"), metavar="DIR", help="the run's (default checkpoints)")
    add("--resume", default="auto", metavar="FILE", help=f"go on from this, or auto (default): {LAST}, if any")
    add("--restore-file", dest="resume", metavar="NAME", help="old form of --resume; a file in --save-dir")
    add("--overwrite", action="store_true", help="replace the run that --save-dir holds")
    add("--save-interval", type=number(int), default=-1, metavar="N", help="also save every N updates")
    add("--no-save", action="store_true", help="write no checkpoints")
    add("--no-epoch-checkpoints", action="store_true", help="keep the last and the best checkpoint only")
    add("--average-last", type=count, default=0, metavar="N", help="average checkpoints of the last N epochs")
    add("--validate-interval", type=positive, default=1, metavar="N", help="epochs between validations (default 1)")
    add("--no-diagnostics", action="store_true", help="do not compute norms of the matrices before every epoch")
    options.add_output_flags(parser)

    options.add_device_flags(parser)
    add = parser.add_argument_group("several processes: torchrun --nproc-per-node N train.py ...").add_argument
    add("--distributed-world-size", type=positive, metavar="N", help="number of processes that torchrun has started")
    for flag in ("rank", "backend", "init-method", "port"):
        add(f"--distributed-{flag}", action=_ByTorchrun, metavar="X", help=argparse.SUPPRESS)
    # fmt: on
    return parser


class _ByTorchrun(argparse.Action):
    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, argparse.SUPPRESS, **options)

    def __call__(self, parser, namespace, values, option):
        parser.error(f"{option} is gone: start the processes with torchrun --nproc-per-node N train.py ...")


def _rates(text: str) -> list[float]:
    rate = number(float, above=0)
    return [rate(part) for part in text.split(",")]


def _betas(text: str) -> list[float]:
    beta = number(float, least=0, most=0.999999999)
    betas = [beta(part) for part in text.strip("() ").split(",")]
    if len(betas) != 2:
        raise argparse.ArgumentTypeError(f"must be two numbers (B1, B2), not {text}")
    return betas


def check(args: argparse.Namespace) -> None:
    """Settle what flags of old command lines mean, and raise UserError for flags that contradict or need each other."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    asked = args.distributed_world_size or processes
    if asked != processes:
        started = f"{processes} {'process was' if processes == 1 else 'processes were'} started"
        command = f"torchrun --nproc-per-node {asked} train.py ..."
        raise UserError(f"--distributed-world-size {asked}, but {started}: use {command}")
    if args.label_smoothing and args.criterion != SMOOTHED:
        raise UserError(f"--label-smoothing has no effect without --criterion {SMOOTHED}")
    if len(args.lr) > 1 and args.lr_scheduler != "fixed":
        raise UserError(f"several rates of --lr need --lr-scheduler fixed, not {args.lr_scheduler}")
    if args.lr[0] <= args.min_lr:
        raise UserError(f"--lr {args.lr[0]:g} must be above --min-lr {args.min_lr:g}, at which training stops")
    if args.optimizer == "nag" and args.momentum == 1:
        raise UserError("--momentum must be below 1 for nag")
    if args.no_save and args.average_last:
        raise UserError("--average-last needs checkpoints: leave out --no-save")
    if args.resume != "auto":
        if args.overwrite:
            raise UserError("--resume goes on with a run, --overwrite replaces it: give only one")
        inside = args.save_dir / args.resume
        args.resume = "auto" if args.resume == LAST else str(inside) if inside.exists() else args.resume


def model_config(args: argparse.Namespace) -> TransformerConfig:
    """Return the model that the flags ask for.

    Raises:
        UserError: for an unknown architecture, or sizes that contradict each other.
    """
    names = ("hidden_size", "filter_size", "num_layers", "num_heads", "dropout", "attention_dropout", "relu_dropout")
    names += ("position", "share_input_output_embed", "rank_scale", "spectral", "spectral_quekey", "spectral_outval")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        return architecture(args.arch, **given, cross_mask=not args.no_cross_mask)
    except ValueError as error:
        raise UserError(error) from None


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = build_parser().parse_args(argv)
    check(args)
    config = model_config(args)
    train(args, config, options.start(args))


if __name__ == "__main__":
    run(main, "train.py")
