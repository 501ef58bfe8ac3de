"""Flags that several programs share. Each program adds its own; a flag of old command lines keeps its spelling."""

import argparse
import os
import warnings
from pathlib import Path

import torch

from lab import devices
from lab.cli import UserError, number

from . import subwords

COUNT, POSITIVE, REAL = number(int, least=0), number(int, least=1), number(float, least=0)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the data folder, the languages, and what limits sentences and batches."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    # fmt: off
    add("data", type=Path, metavar="DIR", help="folder that preprocess.py wrote")
    add("--source-lang", "-s", metavar="LANG", help="language to translate from (default: that of the files in DIR)")
    add("--target-lang", "-t", metavar="LANG", help="language to translate to (default: that of the files in DIR)")
    add("--max-source-positions", type=POSITIVE, default=1024, metavar="N", help="longest source (default 1024)")
    add("--max-target-positions", type=POSITIVE, default=1024, metavar="N", help="longest target (default 1024)")
    add("--skip-invalid-size-inputs-valid-test", action="store_true", help="skip what is too long")
    add("--max-tokens", type=POSITIVE, default=6000, metavar="N", help="tokens of a batch, with padding (default 6000)")
    add("--max-sentences", "--batch-size", type=POSITIVE, metavar="N", help="sentences of a batch (default: any)")
    # fmt: on


def add_rank_flags(parser: argparse.ArgumentParser, training: bool = True) -> None:
    """Add the flags of factorized layers; where nothing is trained, the help only shows `--rank-scale`."""
    group = parser.add_argument_group("factorization")
    rank = "rank as a fraction of a dimension; 0 and 1 are dense"
    rank += "" if training else " (default: what the checkpoint says, which it must be)"
    group.add_argument("--rank-scale", type=REAL, default=0.0 if training else None, metavar="R", help=rank)

    def add(flag: str, text: str, **how) -> None:
        group.add_argument(flag, help=text if training else argparse.SUPPRESS, **how or {"action": "store_true"})

    add("--spectral", "spectral initialization of the two-factor layers")
    add("--spectral-quekey", "spectral initialization of each head's query-key product")
    add("--spectral-outval", "spectral initialization of each head's output-value product")
    add("--wd2fd", "Frobenius decay instead of weight decay on the two-factor layers")
    add("--wd2fd-quekey", "the same on the query-key products of the heads")
    add("--wd2fd-outval", "the same on the output-value products of the heads")
    add("--frobenius-decay", "coefficient of Frobenius decay (default: --weight-decay)", type=REAL, metavar="L")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Add what is printed, how often and where to."""
    group = parser.add_argument_group("output")
    add = group.add_argument
    # fmt: off
    add("--no-progress-bar", action="store_true", help="lines instead of a progress bar")
    add("--log-interval", type=POSITIVE, default=1000, metavar="N", help="batches between lines (default 1000)")
    add("--log-format", choices=("json", "none", "simple", "tqdm"), help="default: tqdm, a bar, on a terminal")
    add("--dump", type=Path, metavar="FILE", help="file for the last two lines of generate.py")
    # fmt: on


def add_device_flags(parser: argparse.ArgumentParser, training: bool = True) -> None:
    """Add where and how to compute; `start` acts on it."""
    devices.add_flags(parser, seed=1, images=False, training=training)
    old = "old form of --device N; the CPU if there is no GPU"
    parser.add_argument("--device-id", type=lambda text: None if text == "auto" else COUNT(text), metavar="N", help=old)
    parser.add_argument("--cpu", action="store_true", help="old form of --device cpu")
    for flag in ("fp16", "bf16"):
        memory = f"--memory-efficient-{flag}"
        parser.add_argument(f"--{flag}", memory, action="store_true", help=f"old form of --amp {flag}")


def settle_precision(args: argparse.Namespace) -> None:
    """Let fairseq's switches stand for `--amp`."""
    kind = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    if not kind:
        return
    if args.amp not in ("off", kind):
        raise UserError(f"--{kind} contradicts --amp {args.amp}: give only one")
    args.amp = kind
    if kind == "fp16" and (args.cpu or args.device == "cpu" or not torch.cuda.is_available()):
        args.amp = "bf16"
        warnings.warn("--fp16 needs a GPU: running with --amp bf16", stacklevel=2)


def start(args: argparse.Namespace) -> devices.Computing:
    """Return `devices.start(args)` after the old forms of `--device` have been taken into account.

    Published commands say `--device-id 0`, so that means the CPU where there is no GPU at all.

    Raises:
        UserError: for devices that contradict each other, or are not there.
    """
    if args.cpu:
        if args.device not in ("auto", "cpu"):
            raise UserError(f"--cpu contradicts --device {args.device}: give only one")
        args.device = "cpu"
    elif args.device_id is not None and args.device == "auto" and "LOCAL_RANK" not in os.environ:
        if torch.cuda.is_available():
            args.device = str(args.device_id)
        else:
            args.device = "cpu"
            warnings.warn(f"there is no GPU: running on the CPU, not on --device-id {args.device_id}", stacklevel=2)
    computing = devices.start(args)
    if computing.amp == torch.float16 and computing.device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU; --amp bf16 runs on the CPU, too")
    devices.keep_freed_memory()
    return computing


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the models and how to search with them."""
    group = parser.add_argument_group("generation")
    add = group.add_argument
    # fmt: off
    add("--path", type=_paths, action="extend", required=True, metavar="FILE", help="checkpoint; given several times, or as FILE:FILE, the models' probabilities are averaged")  # noqa: E501
    add("--beam", type=POSITIVE, default=5, metavar="N", help="hypotheses kept for each sentence (default 5)")
    add("--nbest", type=POSITIVE, default=1, metavar="N", help="hypotheses printed for each sentence (default 1)")
    add("--max-len-a", type=REAL, default=0.0, metavar="A", help="a translation has at most A * source length + B words")  # noqa: E501
    add("--max-len-b", type=COUNT, default=200, metavar="B", help="(default 0 * source length + 200)")
    subwords.add_flag(group)
    add("--no-early-stop", action="store_true", help="search on after N hypotheses have ended, until none can be better")  # noqa: E501
    add("--unnormalized", action="store_true", help="do not divide scores by the length")
    add("--lenpen", type=REAL, default=1.0, metavar="P", help="divide scores by length ** P (default 1)")
    add("--unkpen", type=number(float), default=0.0, metavar="C", help="subtract C from the score of an unknown word")
    add("--replace-unk", nargs="?", const=True, type=Path, metavar="FILE", help="replace unknown words by the source word they are aligned with, or what FILE (lines 'source target') has for it; reads raw text")  # noqa: E501
    add("--min-len", type=POSITIVE, default=1, metavar="N", help="a translation has at least N words (default 1)")
    add("--temperature", type=number(float, above=0), default=1.0, metavar="T", help="divide logits by T (default 1)")
    add("--sampling", action="store_true", help="draw N translations instead of searching; needs --nbest N as well")
    add("--sampling-topk", type=number(int, least=-1), default=-1, metavar="K", help="draw from the K likeliest words (default -1: all)")  # noqa: E501
    add("--sampling-topp", type=number(float, least=-1, most=1), default=-1.0, metavar="P", help="draw from the likeliest words with the probability P together (default -1: all)")  # noqa: E501
    add("--no-beamable-mm", action="store_true", help=argparse.SUPPRESS)
    # fmt: on


def _paths(text: str) -> list[Path]:
    names = [text] if Path(text).exists() else text.split(os.pathsep)  # as in fairseq
    return [Path(name) for name in names if name]


def check_generation(args: argparse.Namespace) -> None:
    """Look for flags that contradict each other, and warn of those that only have an effect in training.

    Raises:
        UserError: if there are any.
    """
    if args.nbest > args.beam:
        raise UserError(f"--nbest {args.nbest} hypotheses cannot be had from --beam {args.beam}; raise it")
    if args.sampling and args.nbest != args.beam:
        raise UserError(f"--sampling draws --beam {args.beam} translations: give --nbest {args.beam}, too")
    for flag in ("sampling_topk", "sampling_topp"):
        if getattr(args, flag) > 0 and not args.sampling:
            raise UserError(f"--{flag.replace('_', '-')} has no effect without --sampling")
    if args.sampling_topk > 0 and args.sampling_topp > 0:
        raise UserError("--sampling-topk and --sampling-topp are two ways to choose words: give only one")
    if not args.max_len_a and args.min_len > args.max_len_b:
        raise UserError(f"--min-len {args.min_len} is above --max-len-b {args.max_len_b}, the most")
    training = ["spectral", "spectral_quekey", "spectral_outval", "wd2fd", "wd2fd_quekey", "wd2fd_outval"]
    for name in [*training, "frobenius_decay"]:
        if getattr(args, name):
            warnings.warn(f"--{name.replace('_', '-')} only has an effect in training", stacklevel=2)
    settle_precision(args)
