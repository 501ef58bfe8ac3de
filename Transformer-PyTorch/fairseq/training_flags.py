"""The command line of train.py: its flags, which of them go together, and the model that they ask for."""

import argparse
import json
import os
from pathlib import Path

from lab.cli import Parser, UserError, number
from lab.run import is_in

from . import foreign, options
from .config import ARCHITECTURES, POSITIONS, TransformerConfig, architecture
from .foreign_training import TRAIN
from .optimization import OPTIMIZERS
from .schedule import SCHEDULES
from .training import LAST
from .validation import METRICS, SEARCH

SMOOTHED = "label_smoothed_cross_entropy"


def build_parser(description: str | None = None) -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="train.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_data_flags(parser)
    _add_subset_flags(parser)
    _add_model_flags(parser)
    options.add_rank_flags(parser)
    _add_optimization_flags(parser)
    _add_file_flags(parser)
    _add_bleu_flags(parser)
    options.add_output_flags(parser)
    options.add_device_flags(parser)
    add = parser.add_argument_group("several processes: torchrun --nproc-per-node N train.py ...").add_argument
    world_size = "number of processes that torchrun has started"
    add("--distributed-world-size", type=options.POSITIVE, metavar="N", help=world_size)
    foreign.add_flags(parser, TRAIN)
    return parser


# fmt: off
def _add_subset_flags(parser: argparse.ArgumentParser) -> None:
    count, positive = options.COUNT, options.POSITIVE
    add = parser.add_argument_group("what to train and validate on").add_argument
    add("--task", choices=("translation",), help=argparse.SUPPRESS)
    add("--train-subset", default="train", metavar="SPLIT", help="split to train on (default train)")
    add("--valid-subset", default="valid", metavar="SPLIT,...", help="splits to validate on (default valid)")
    add("--max-sentences-valid", "--batch-size-valid", type=positive, metavar="N", help="the same for validation (default: the same)")  # noqa: E501
    add("--sample-without-replacement", type=count, default=0, metavar="N", help="batches of an epoch (default: all)")
    add("--curriculum", type=count, default=0, metavar="N", help="keep the order of length in the first N epochs")


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    positive, real = options.POSITIVE, options.REAL
    add = parser.add_argument_group("model").add_argument
    add("--arch", "-a", required=True, metavar="NAME", help=f"{', '.join(ARCHITECTURES)}; flags change its sizes")
    add("--hidden-size", "--hidden_size", type=positive, metavar="D", help="width of embeddings and layers")
    add("--filter-size", "--filter_size", type=positive, metavar="F", help="width inside the feed-forward networks")
    add("--num-layers", "--num_layers", type=positive, metavar="L", help="layers of the encoder, and of the decoder")
    add("--encoder-layers", type=positive, metavar="L", help="layers of the encoder, where it has another number")
    add("--decoder-layers", type=positive, metavar="L", help="layers of the decoder, where it has another number")
    add("--num-heads", "--num_heads", "--num-head", "--num_head", type=positive, metavar="H", help="attention heads")
    add("--dropout", type=real, metavar="P", help="after embeddings and sublayers (default 0.1)")
    add("--attention-dropout", type=real, metavar="P", help="of attention weights (default 0)")
    add("--relu-dropout", "--activation-dropout", type=real, metavar="P", help="inside the feed-forward networks (default 0.1)")  # noqa: E501
    add("--activation-fn", choices=("relu",), help=argparse.SUPPRESS)
    add("--position", choices=POSITIONS, help="position embeddings (default learned)")
    add("--share-input-output-embed", "--share-decoder-input-output-embed", action="store_true", help="the output layer uses the target's embeddings")  # noqa: E501
    add("--share-all-embeddings", action="store_true", help="so does the source; needs a joined dictionary")
    add("--no-cross-mask", action="store_true", help="let the decoder attend to source padding, as in 2018")


def _add_optimization_flags(parser: argparse.ArgumentParser) -> None:
    count, positive, real, any_real = options.COUNT, options.POSITIVE, options.REAL, number(float)
    share = number(float, least=0, most=1)
    add = parser.add_argument_group("optimization").add_argument
    add("--criterion", choices=("cross_entropy", SMOOTHED), default="cross_entropy", help="default cross_entropy")
    add("--label-smoothing", type=share, default=0.0, metavar="E", help=f"with {SMOOTHED}")
    add("--max-epoch", "--me", type=count, default=0, metavar="N", help="stop after epoch N")
    add("--max-update", "--mu", type=count, default=0, metavar="N", help="stop after N updates")
    add("--patience", type=number(int, least=-1), default=-1, metavar="N", help="stop after N validations without a better one")  # noqa: E501
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
    add("--warmup-updates", type=count, default=4000, metavar="N", help="of inverse_sqrt, cosine and polynomial_decay; 0: none (default 4000)")  # noqa: E501
    add("--warmup-init-lr", type=any_real, default=-1.0, metavar="LR", help="first of inverse_sqrt; -1: --lr (default). The others begin at 0")  # noqa: E501
    add("--total-num-update", type=positive, metavar="N", help="end of cosine and polynomial_decay (default --max-update)")  # noqa: E501
    add("--end-learning-rate", type=real, default=0.0, metavar="LR", help="rate at that end (default 0)")
    add("--power", type=number(float, above=0), default=1.0, metavar="P", help="of polynomial_decay (default 1)")
    add("--force-anneal", "--fa", type=count, metavar="N", help="of fixed: shrink the rate from epoch N on")
    add("--lr-shrink", type=share, default=0.1, metavar="S", help="of fixed and reduce_lr_on_plateau (default 0.1)")
    add("--min-lr", "--stop-min-lr", type=real, default=1e-5, metavar="LR", help="stop once the rate has fallen to this (default 1e-5)")  # noqa: E501


def _add_file_flags(parser: argparse.ArgumentParser) -> None:
    count, positive = options.COUNT, options.POSITIVE
    add = parser.add_argument_group("files").add_argument
    add("--save-dir", type=Path, default=Path("checkpoints"), metavar="DIR", help="the run's (default checkpoints)")
    add("--resume", default="auto", metavar="FILE", help=f"go on from this, or auto (default): {LAST}, if any")
    add("--restore-file", dest="resume", metavar="NAME", help="old form of --resume; a file in --save-dir")
    add("--finetune-from-model", type=Path, metavar="FILE", help="begin with the weights of this checkpoint")
    add("--reset-optimizer", action="store_true", help="take no more than the weights from --resume FILE")
    for part in ("lr-scheduler", "dataloader", "meters"):
        add(f"--reset-{part}", action="store_true", help=argparse.SUPPRESS)
    add("--overwrite", action="store_true", help="replace the run that --save-dir holds")
    add("--save-interval", type=number(int), default=1, metavar="N", help="keep the checkpoint of every N-th epoch (default 1)")  # noqa: E501
    add("--save-interval-updates", type=count, default=0, metavar="N", help="also save every N updates")
    add("--keep-last-epochs", type=number(int), default=-1, metavar="N", help="keep the last N checkpoints of epochs (default: all)")  # noqa: E501
    add("--keep-interval-updates", type=number(int), default=-1, metavar="N", help="keep the last N that --save-interval-updates wrote (default: all)")  # noqa: E501
    add("--no-save", action="store_true", help="write no checkpoints")
    add("--no-epoch-checkpoints", action="store_true", help="keep the last and the best checkpoint only")
    add("--average-last", type=count, default=0, metavar="N", help="average the checkpoints of the last N epochs")
    add("--validate-interval", type=positive, default=1, metavar="N", help="epochs between validations (default 1)")
    add("--no-diagnostics", action="store_true", help="do not compute norms of the matrices before every epoch")


def _add_bleu_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("BLEU in validation").add_argument
    add("--best-checkpoint-metric", choices=METRICS, default="loss", help="what makes an epoch the best (default loss)")
    add("--maximize-best-checkpoint-metric", action="store_true", help="what is always so with bleu")
    add("--eval-bleu", action="store_true", help="translate the validation data and compute BLEU, too")
    add("--eval-bleu-args", type=_search, default={}, metavar="JSON", help=f'such as {{"beam": 5}}; knows {", ".join(SEARCH)}')  # noqa: E501
    add("--eval-bleu-remove-bpe", nargs="?", const="subword_nmt", metavar="MARK", help="join subwords first, as --remove-bpe of generate.py")  # noqa: E501
    add("--eval-bleu-detok", choices=("moses", "space"), default="moses", help="how text is detokenized (default moses)")  # noqa: E501
    add("--eval-tokenized-bleu", action="store_true", help="BLEU of the tokens as they are, not sacreBLEU's")
    add("--eval-bleu-print-samples", action="store_true", help="print a translation at every validation")
# fmt: on


def _rates(text: str) -> list[float]:
    rate = number(float, above=0)
    return [rate(part) for part in text.split(",")]


def _betas(text: str) -> list[float]:
    beta = number(float, least=0, most=0.999999999)
    betas = [beta(part) for part in text.strip("() ").split(",")]
    if len(betas) != 2:
        raise argparse.ArgumentTypeError(f"must be two numbers (B1, B2), not {text}")
    return betas


def _search(text: str) -> dict:
    try:
        settings = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise argparse.ArgumentTypeError(f'must be JSON such as {{"beam": 5}}, not {text}') from None
    for name, value in settings.items():
        if name not in SEARCH:
            raise argparse.ArgumentTypeError(f"has {name}; it knows {', '.join(SEARCH)}")
        settings[name] = SEARCH[name](json.dumps(value))
    return settings


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
    _check_schedule(args)
    _check_files(args)
    _check_bleu(args)
    options.settle_precision(args)


def _check_schedule(args: argparse.Namespace) -> None:
    if args.lr_scheduler not in ("cosine", "polynomial_decay"):
        return
    end = args.total_num_update or args.max_update
    if not end:
        raise UserError(f"--lr-scheduler {args.lr_scheduler} needs to know its end: give --max-update N")
    if args.warmup_updates >= end:
        raise UserError(f"--warmup-updates {args.warmup_updates} must be below the {end} updates of the schedule")


def _check_files(args: argparse.Namespace) -> None:
    if args.no_save and args.average_last:
        raise UserError("--average-last needs checkpoints: leave out --no-save")
    if args.no_epoch_checkpoints and args.keep_last_epochs > 0:
        raise UserError("--keep-last-epochs contradicts --no-epoch-checkpoints: give only one")
    if args.save_interval == 0:
        raise UserError("--save-interval must be an integer of at least 1, not 0; --no-epoch-checkpoints keeps none")
    resets = [name for name in ("lr_scheduler", "dataloader", "meters") if getattr(args, f"reset_{name}")]
    if resets and not args.reset_optimizer:
        flag = f"--reset-{resets[0].replace('_', '-')}"
        raise UserError(f"{flag} alone is not possible: --reset-optimizer begins with the weights and nothing else")
    if args.resume == "auto":
        if args.reset_optimizer and not args.finetune_from_model:
            raise UserError("--reset-optimizer needs the checkpoint to begin with: --finetune-from-model FILE")
        return
    if args.overwrite:
        raise UserError("--resume goes on with a run, --overwrite replaces it: give only one")
    if args.finetune_from_model:
        raise UserError("--resume goes on with a run, --finetune-from-model begins a new one: give only one")
    inside = args.save_dir / args.resume
    args.resume = "auto" if args.resume == LAST else str(inside) if inside.exists() else args.resume
    if args.reset_optimizer:
        if args.resume == "auto" or is_in(Path(args.resume), args.save_dir):
            raise UserError(f"--reset-optimizer begins a new run, --save-dir {args.save_dir} holds one: use another")
        # A second name for the same, so that the same command goes on with that run, too.
        args.finetune_from_model, args.resume = Path(args.resume), "auto"


def _check_bleu(args: argparse.Namespace) -> None:
    metric = args.best_checkpoint_metric
    if metric == "bleu" and not args.eval_bleu:
        raise UserError("--best-checkpoint-metric bleu needs --eval-bleu")
    if metric != "bleu" and args.maximize_best_checkpoint_metric:
        raise UserError(f"the best {metric} is the lowest: leave out --maximize-best-checkpoint-metric")
    for flag in ("eval_bleu_args", "eval_bleu_remove_bpe", "eval_tokenized_bleu", "eval_bleu_print_samples"):
        if getattr(args, flag) and not args.eval_bleu:
            raise UserError(f"--{flag.replace('_', '-')} has no effect without --eval-bleu")


def model_config(args: argparse.Namespace) -> TransformerConfig:
    """Return the model that the flags ask for.

    Raises:
        UserError: for an unknown architecture, or sizes that contradict each other.
    """
    names = ("hidden_size", "filter_size", "num_layers", "num_heads", "dropout", "attention_dropout", "relu_dropout")
    names += ("encoder_layers", "decoder_layers", "position", "share_input_output_embed", "share_all_embeddings")
    names += ("rank_scale", "spectral", "spectral_quekey", "spectral_outval")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        return architecture(args.arch, **given, cross_mask=not args.no_cross_mask)
    except ValueError as error:
        raise UserError(error) from None
