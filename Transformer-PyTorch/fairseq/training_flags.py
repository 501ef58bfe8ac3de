"""The command line of train.py: its flags, which of them go together, and the model that they ask for."""

import argparse
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import flags
from lab.cli import mistakes, number
from lab.earlier import is_in
from lab.flags import COUNT, POSITIVE, REAL, SHARE
from lab.settings import Parser, Settings, flag

from . import foreign, options
from .config import ARCHITECTURES, POSITIONS, TransformerConfig, architecture
from .foreign_training import TRAIN
from .keeping import LAST
from .optimization import OPTIMIZERS
from .schedule import SCHEDULES
from .validation import METRICS, SEARCH

SMOOTHED = "label_smoothed_cross_entropy"


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


# fmt: off


@dataclass(frozen=True, kw_only=True)
class Subsets(options.Data):
    """What to train and validate on."""

    task: str | None = flag("data", choices=("translation",))
    train_subset: str = flag("data", default="train", metavar="SPLIT", help="split to train on")
    valid_subset: str = flag("data", default="valid", metavar="SPLIT,...", help="splits to validate on")
    batch_size_valid: int | None = flag("data", "--max-sentences-valid", type=POSITIVE, metavar="N", help="sentences of a batch of validation (default: --batch-size)")  # noqa: E501
    sample_without_replacement: int = flag("data", default=0, type=COUNT, metavar="N", help="batches of an epoch; 0: all")  # noqa: E501
    curriculum: int = flag("data", default=0, type=COUNT, metavar="N", help="keep the order of length in the first N epochs")  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Model(Settings):
    """The model; what is not given is the architecture's."""

    arch: str = flag("network", "-a", required=True, metavar="NAME", help=f"{', '.join(ARCHITECTURES)}; flags change its sizes")  # noqa: E501
    hidden_size: int | None = flag("network", type=POSITIVE, metavar="D", help="width of embeddings and layers (default: the architecture's)")  # noqa: E501
    filter_size: int | None = flag("network", type=POSITIVE, metavar="F", help="width inside the feed-forward networks (default: the architecture's)")  # noqa: E501
    num_layers: int | None = flag("network", type=POSITIVE, metavar="L", help="layers of the encoder, and of the decoder (default: the architecture's)")  # noqa: E501
    encoder_layers: int | None = flag("network", type=POSITIVE, metavar="L", help="layers of the encoder (default: --num-layers)")  # noqa: E501
    decoder_layers: int | None = flag("network", type=POSITIVE, metavar="L", help="layers of the decoder (default: --num-layers)")  # noqa: E501
    num_heads: int | None = flag("network", "--num-head", type=POSITIVE, metavar="H", help="attention heads (default: the architecture's)")  # noqa: E501
    dropout: float | None = flag("network", type=REAL, metavar="P", help="after embeddings and sublayers (default 0.1)")
    attention_dropout: float | None = flag("network", type=REAL, metavar="P", help="of attention weights (default 0)")
    relu_dropout: float | None = flag("network", "--activation-dropout", type=REAL, metavar="P", help="inside the feed-forward networks (default 0.1)")  # noqa: E501
    activation_fn: str | None = flag("network", choices=("relu",))
    position: str | None = flag("network", choices=POSITIONS, help="position embeddings (default learned)")
    share_input_output_embed: bool = flag("network", "--share-decoder-input-output-embed", default=False, help="the output layer uses the target's embeddings")  # noqa: E501
    share_all_embeddings: bool = flag("network", default=False, help="so does the source; needs a joined dictionary")
    no_cross_mask: bool = flag("network", default=False, help="let the decoder attend to source padding, as in 2018")


@dataclass(frozen=True, kw_only=True)
class Factorized(flags.Rank):
    """Which parts are factorized, how they start and what decays them."""

    rank_scale: float = flag("factorization", default=0.0, type=REAL, metavar="S", help="rank as a fraction of a dimension; 0 and 1 are dense")  # noqa: E501
    spectral: bool = flag("factorization", default=False, help="spectral initialization of the two-factor layers")
    spectral_quekey: bool = flag("factorization", default=False, help="of each head's query-key product")
    spectral_outval: bool = flag("factorization", default=False, help="of each head's output-value product")
    wd2fd: bool = flag("factorization", default=False, help="Frobenius decay instead of weight decay on the two-factor layers")  # noqa: E501
    wd2fd_quekey: bool = flag("factorization", default=False, help="the same on the query-key products of the heads")
    wd2fd_outval: bool = flag("factorization", default=False, help="the same on the output-value products of the heads")
    frobenius_decay: float | None = flag("factorization", type=REAL, metavar="L", help="coefficient of Frobenius decay (default: --weight-decay)")  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Optimized(flags.Decay):
    """How the model is optimized, and how long."""

    criterion: str = flag("optimization", default="cross_entropy", choices=("cross_entropy", SMOOTHED), help="the loss")
    label_smoothing: float = flag("optimization", default=0.0, type=SHARE, metavar="E", help=f"with {SMOOTHED}")
    epochs: int = flag("optimization", "--max-epoch", "--me", default=0, type=COUNT, metavar="N", help="stop after epoch N; 0: other limits decide")  # noqa: E501
    max_update: int = flag("optimization", "--mu", default=0, type=COUNT, metavar="N", help="stop after N updates; 0: other limits decide")  # noqa: E501
    patience: int = flag("optimization", default=-1, type=number(int, least=-1), metavar="N", help="stop after N validations without a better one (default -1: never)")  # noqa: E501
    clip_norm: float = flag("optimization", default=25.0, type=number(float), metavar="C", help="largest gradient norm; 0: any")  # noqa: E501
    sentence_avg: bool = flag("optimization", default=False, help="divide gradients by sentences, not by target tokens")
    update_freq: int = flag("optimization", default=1, type=POSITIVE, metavar="N", help="batches of an update")
    optimizer: str = flag("optimization", default="nag", choices=OPTIMIZERS, help="the update")
    lr: list[float] = flag("optimization", "--learning-rate", default=[0.25], type=_rates, metavar="LR,...", help="rate, or rates of epochs (default 0.25)")  # noqa: E501
    momentum: float = flag("optimization", default=0.99, type=SHARE, metavar="M", help="of nag and sgd")
    adam_betas: list[float] = flag("optimization", default=[0.9, 0.999], type=_betas, metavar="(B1,B2)", help="of adam (default (0.9, 0.999))")  # noqa: E501
    adam_eps: float = flag("optimization", default=1e-8, type=REAL, metavar="E", help="of adam")
    weight_decay: float = flags.weight_decay(0.0, help="coefficient of weight decay, and of Frobenius decay unless --frobenius-decay says otherwise")  # noqa: E501
    lr_scheduler: str = flag("optimization", default="reduce_lr_on_plateau", choices=SCHEDULES, help="course of the rate")  # noqa: E501
    warmup_updates: int = flag("optimization", default=4000, type=COUNT, metavar="N", help="of inverse_sqrt, cosine and polynomial_decay; 0: none")  # noqa: E501
    warmup_init_lr: float = flag("optimization", default=-1.0, type=number(float), metavar="LR", help="first of inverse_sqrt (default -1: --lr); the others begin at 0")  # noqa: E501
    total_num_update: int | None = flag("optimization", type=POSITIVE, metavar="N", help="end of cosine and polynomial_decay (default --max-update)")  # noqa: E501
    end_learning_rate: float = flag("optimization", default=0.0, type=REAL, metavar="LR", help="rate at that end")
    power: float = flag("optimization", default=1.0, type=number(float, above=0), metavar="P", help="of polynomial_decay")  # noqa: E501
    force_anneal: int | None = flag("optimization", "--fa", type=COUNT, metavar="N", help="of fixed: shrink the rate from epoch N on (default: never)")  # noqa: E501
    lr_shrink: float = flag("optimization", default=0.1, type=SHARE, metavar="S", help="of fixed and reduce_lr_on_plateau")  # noqa: E501
    min_lr: float = flag("optimization", "--stop-min-lr", default=1e-5, type=REAL, metavar="LR", help="stop once the rate has fallen to this")  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Files(flags.Overwrite):
    """Which checkpoints the run begins with, writes and keeps."""

    save_dir: Path = flags.save_dir("checkpoints")
    resume: str = flags.resume("--restore-file", default="auto", help=f"go on from this, also a file in --save-dir; auto (default): {LAST}, if any")  # noqa: E501
    finetune_from_model: Path | None = flag("run", metavar="FILE", help="begin with the weights of this checkpoint")
    reset_optimizer: bool = flag("run", default=False, help="take no more than the weights from --resume FILE")
    reset_lr_scheduler: bool = flag("run", default=False)
    reset_dataloader: bool = flag("run", default=False)
    reset_meters: bool = flag("run", default=False)
    save_interval: int = flag("run", default=1, type=number(int), metavar="N", help="keep the checkpoint of every N-th epoch")  # noqa: E501
    save_interval_updates: int = flag("run", default=0, type=COUNT, metavar="N", help="also save every N updates; 0: do not")  # noqa: E501
    keep_last_epochs: int = flag("run", default=-1, type=number(int), metavar="N", help="keep the last N checkpoints of epochs (default -1: all)")  # noqa: E501
    keep_interval_updates: int = flag("run", default=-1, type=number(int), metavar="N", help="keep the last N that --save-interval-updates wrote (default -1: all)")  # noqa: E501
    no_save: bool = flag("run", default=False, help="write no checkpoints")
    no_epoch_checkpoints: bool = flag("run", default=False, help="keep the last and the best checkpoint only")
    average_last: int = flag("run", default=0, type=COUNT, metavar="N", help="average the checkpoints of the last N epochs; 0: do not")  # noqa: E501
    validate_interval: int = flag("run", default=1, type=POSITIVE, metavar="N", help="epochs between validations")
    no_diagnostics: bool = flag("run", default=False, help="do not compute norms of the matrices before every epoch")


@dataclass(frozen=True, kw_only=True)
class Bleu(Settings):
    """BLEU in validation."""

    best_checkpoint_metric: str = flag("run", default="loss", choices=METRICS, help="what makes an epoch the best")
    maximize_best_checkpoint_metric: bool = flag("run", default=False, help="what is always so with bleu")
    eval_bleu: bool = flag("run", default=False, help="translate the validation data and compute BLEU, too")
    eval_bleu_args: dict = flag("run", default={}, type=_search, metavar="JSON", help=f'such as {{"beam": 5}}; knows {", ".join(SEARCH)} (default: those of generate.py)')  # noqa: E501
    eval_bleu_remove_bpe: str | None = flag("run", nargs="?", const="subword_nmt", metavar="MARK", help="join subwords first, as --remove-bpe of generate.py")  # noqa: E501
    eval_bleu_detok: str = flag("run", default="moses", choices=("moses", "space"), help="how text is detokenized")
    eval_tokenized_bleu: bool = flag("run", default=False, help="BLEU of the tokens as they are, not sacreBLEU's")
    eval_bleu_print_samples: bool = flag("run", default=False, help="print a translation at every validation")
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Training(Subsets, Model, Factorized, Optimized, Files, Bleu, options.Output, options.Computing, flags.Training):
    """What train.py is asked to do; contradictions are a ValueError."""

    PUBLISHED = {
        "epochs": "max_epoch",
        "batch_size": "max_sentences",
        "batch_size_valid": "max_sentences_valid",
    }

    batch_size: int | None = flags.batch_size(None, "--max-sentences", help="sentences of a batch (default: any)")
    distributed_world_size: int | None = flag("speed", type=POSITIVE, metavar="N",
        help="number of processes that torchrun has started: torchrun --nproc-per-node N train.py ... (default: "
        "that)")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        processes = int(os.environ.get("WORLD_SIZE", 1))
        asked = self.distributed_world_size or processes
        if asked != processes:
            started = f"{processes} {'process was' if processes == 1 else 'processes were'} started"
            command = f"torchrun --nproc-per-node {asked} train.py ..."
            raise ValueError(f"--distributed-world-size {asked}, but {started}: use {command}")
        if self.label_smoothing and self.criterion != SMOOTHED:
            raise ValueError(f"--label-smoothing has no effect without --criterion {SMOOTHED}")
        if len(self.lr) > 1 and self.lr_scheduler != "fixed":
            raise ValueError(f"several rates of --lr need --lr-scheduler fixed, not {self.lr_scheduler}")
        if self.lr[0] <= self.min_lr:
            raise ValueError(f"--lr {self.lr[0]:g} must be above --min-lr {self.min_lr:g}, at which training stops")
        if self.optimizer == "nag" and self.momentum == 1:
            raise ValueError("--momentum must be below 1 for nag")
        if self.decay_budget is not None and self.frobenius_decay is not None:
            raise ValueError("--decay-budget finds the coefficient of --frobenius-decay: give only one")
        self._check_schedule()
        self._check_files()
        self._check_bleu()

    def _check_schedule(self) -> None:
        if self.lr_scheduler not in ("cosine", "polynomial_decay"):
            return
        end = self.total_num_update or self.max_update
        if not end:
            raise ValueError(f"--lr-scheduler {self.lr_scheduler} needs to know its end: give --max-update N")
        if self.warmup_updates >= end:
            raise ValueError(f"--warmup-updates {self.warmup_updates} must be below the {end} updates of the schedule")

    def _check_files(self) -> None:
        if self.no_save and self.average_last:
            raise ValueError("--average-last needs checkpoints: leave out --no-save")
        if self.no_epoch_checkpoints and self.keep_last_epochs > 0:
            raise ValueError("--keep-last-epochs contradicts --no-epoch-checkpoints: give only one")
        if self.save_interval == 0:
            raise ValueError(
                "--save-interval must be an integer of at least 1, not 0; --no-epoch-checkpoints keeps none"
            )
        resets = [name for name in ("lr_scheduler", "dataloader", "meters") if getattr(self, f"reset_{name}")]
        if resets and not self.reset_optimizer:
            flag = f"--reset-{resets[0].replace('_', '-')}"
            raise ValueError(
                f"{flag} alone is not possible: --reset-optimizer begins with the weights and nothing else"
            )
        if self.resume == "auto":
            if self.reset_optimizer and not self.finetune_from_model:
                raise ValueError("--reset-optimizer needs the checkpoint to begin with: --finetune-from-model FILE")
            return
        if self.overwrite:
            raise ValueError("--resume goes on with a run, --overwrite replaces it: give only one")
        if self.finetune_from_model:
            raise ValueError("--resume goes on with a run, --finetune-from-model begins a new one: give only one")

    def _check_bleu(self) -> None:
        metric = self.best_checkpoint_metric
        if metric == "bleu" and not self.eval_bleu:
            raise ValueError("--best-checkpoint-metric bleu needs --eval-bleu")
        if metric != "bleu" and self.maximize_best_checkpoint_metric:
            raise ValueError(f"the best {metric} is the lowest: leave out --maximize-best-checkpoint-metric")
        if not self.eval_bleu:
            names = ("eval_bleu_args", "eval_bleu_remove_bpe", "eval_tokenized_bleu", "eval_bleu_print_samples")
            self.require("--eval-bleu", *names)

    def completed(self) -> Any:
        """Return the settings with the checkpoint to begin with as a path, or `auto`; else as `Computing` does."""
        settings = super().completed()
        if self.resume == "auto":
            return settings
        inside = self.save_dir / self.resume
        resume = str(inside) if inside.exists() else self.resume
        if self.resume == LAST:
            resume = "auto"
        if not self.reset_optimizer:
            return dataclasses.replace(settings, resume=resume)
        if resume == "auto" or is_in(Path(resume), self.save_dir):
            raise ValueError(f"--reset-optimizer begins a new run, --save-dir {self.save_dir} holds one: use another")
        # A second name for the same, so that the same command goes on with that run, too.
        return dataclasses.replace(settings, finetune_from_model=Path(resume), resume="auto")


def build_parser(description: str | None = None) -> Parser:
    """Return the parser of the command line."""
    parser = Parser(Training, prog="train.py", description=description)
    foreign.add_flags(parser, TRAIN)
    return parser


def model_config(args: Training) -> TransformerConfig:
    """Return the model that the flags ask for.

    Raises:
        UserError: for an unknown architecture, or sizes that contradict each other.
    """
    names = ("hidden_size", "filter_size", "num_layers", "num_heads", "dropout", "attention_dropout", "relu_dropout")
    names += ("encoder_layers", "decoder_layers", "position", "share_input_output_embed", "share_all_embeddings")
    names += ("rank_scale", "spectral", "spectral_quekey", "spectral_outval")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    with mistakes():
        return architecture(args.arch, **given, cross_mask=not args.no_cross_mask)
