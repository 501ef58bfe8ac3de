"""Flags that several programs share. Each program adds its own; a flag of old command lines keeps its spelling."""

import dataclasses
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lab import devices, flags
from lab.cli import UserError, number
from lab.flags import COUNT, POSITIVE, REAL
from lab.settings import Settings, flag

from . import subwords

# fmt: off


@dataclass(frozen=True, kw_only=True)
class Data(Settings):
    """The data folder, the languages, and what limits sentences and batches."""

    data: Path = flag("data", words="too", required=True, metavar="DIR", help="folder that preprocess.py wrote; also as a word, without --data")  # noqa: E501
    source_lang: str | None = flag("data", "-s", metavar="LANG", help="language to translate from (default: that of the files in DIR)")  # noqa: E501
    target_lang: str | None = flag("data", "-t", metavar="LANG", help="language to translate to (default: that of the files in DIR)")  # noqa: E501
    max_source_positions: int = flag("data", default=1024, type=POSITIVE, metavar="N", help="longest source")
    max_target_positions: int = flag("data", default=1024, type=POSITIVE, metavar="N", help="longest target")
    skip_invalid_size_inputs_valid_test: bool = flag("data", default=False, help="skip what is too long")
    max_tokens: int = flag("data", default=6000, type=POSITIVE, metavar="N", help="tokens of a batch, with padding")
    batch_size: int | None = flag("data", "-b", "--max-sentences", type=POSITIVE, metavar="N", help="sentences of a batch (default: any)")  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Output(Settings):
    """What is printed, how often and where to."""

    no_progress_bar: bool = flag("run", default=False, help="lines instead of a progress bar")
    log_interval: int = flag("run", default=1000, type=POSITIVE, metavar="N", help="batches between lines")
    log_format: str | None = flag("run", choices=("json", "none", "simple", "tqdm"), help="default: tqdm, a bar, on a terminal")  # noqa: E501
    dump: Path | None = flag("run", metavar="FILE", help="file for the last two lines of generate.py")


@dataclass(frozen=True, kw_only=True)
class Computing(flags.Computing):
    """Where and how to compute; `start` acts on it."""

    seed: int = flag("run", default=1, type=number(int, least=0, most=2**63 - 1), metavar="N", help="seed of all random numbers")  # noqa: E501

    # Old forms of --device and --amp.
    device_id: int | None = flag("speed", type=lambda text: None if text == "auto" else COUNT(text))
    cpu: bool = flag("speed", default=False)
    fp16: bool = flag("speed", "--memory-efficient-fp16", default=False)
    bf16: bool = flag("speed", "--memory-efficient-bf16", default=False)

    def completed(self) -> Any:
        """Return the settings with what the old forms say in the place of the new ones.

        Published commands say `--device-id 0`, so that means the CPU where there is no GPU at all.
        """
        device, amp = self.device, self.amp
        if self.cpu:
            if device not in ("auto", "cpu"):
                raise ValueError(f"--cpu contradicts --device {device}: give only one")
            device = "cpu"
        elif self.device_id is not None and device == "auto" and "LOCAL_RANK" not in os.environ:
            device = str(self.device_id) if torch.cuda.is_available() else "cpu"
            if device == "cpu":
                warnings.warn(f"there is no GPU: running on the CPU, not on --device-id {self.device_id}", stacklevel=2)
        if kind := next((kind for kind in ("bf16", "fp16") if getattr(self, kind)), None):
            if amp not in ("off", kind):
                raise ValueError(f"--{kind} contradicts --amp {amp}: give only one")
            amp = kind
            if kind == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
                amp = "bf16"
                warnings.warn("--fp16 needs a GPU: running with --amp bf16", stacklevel=2)
        return dataclasses.replace(super().completed(), device=device, amp=amp, cpu=False, fp16=False, bf16=False)


@dataclass(frozen=True, kw_only=True)
class Generation(Data, Output, Computing):
    """The models and how to search with them; contradictions are a ValueError."""

    path: list[Path] = flag("generation", type=lambda text: _paths(text), action="extend", required=True, metavar="FILE", help="checkpoint; given several times, or as FILE:FILE, the models' probabilities are averaged")  # noqa: E501
    beam: int = flag("generation", default=5, type=POSITIVE, metavar="N", help="hypotheses kept for each sentence")
    nbest: int = flag("generation", default=1, type=POSITIVE, metavar="N", help="hypotheses printed for each sentence")
    max_len_a: float = flag("generation", default=0.0, type=REAL, metavar="A", help="a translation has at most A * source length + B words")  # noqa: E501
    max_len_b: int = flag("generation", default=200, type=COUNT, metavar="B", help="see --max-len-a")
    remove_bpe: str | None = flag("generation", "--post-process", nargs="?", const="subword_nmt", metavar="MARK", help=subwords.HELP)  # noqa: E501
    no_early_stop: bool = flag("generation", default=False, help="search on after N hypotheses have ended, until none can be better")  # noqa: E501
    unnormalized: bool = flag("generation", default=False, help="do not divide scores by the length")
    lenpen: float = flag("generation", default=1.0, type=REAL, metavar="P", help="divide scores by length ** P")
    unkpen: float = flag("generation", default=0.0, type=number(float), metavar="C", help="subtract C from the score of an unknown word")  # noqa: E501
    replace_unk: Path | bool | None = flag("generation", nargs="?", const=True, type=Path, metavar="FILE", help="replace unknown words by the source word they are aligned with, or what FILE (lines 'source target') has for it; reads raw text")  # noqa: E501
    min_len: int = flag("generation", default=1, type=POSITIVE, metavar="N", help="a translation has at least N words")
    temperature: float = flag("generation", default=1.0, type=number(float, above=0), metavar="T", help="divide logits by T")  # noqa: E501
    sampling: bool = flag("generation", default=False, help="draw N translations instead of searching; needs --nbest N as well")  # noqa: E501
    sampling_topk: int = flag("generation", default=-1, type=number(int, least=-1), metavar="K", help="draw from the K likeliest words (default -1: all)")  # noqa: E501
    sampling_topp: float = flag("generation", default=-1.0, type=number(float, least=-1, most=1), metavar="P", help="draw from the likeliest words with the probability P together (default -1: all)")  # noqa: E501
    rank_scale: float | None = flag("factorization", type=REAL, metavar="S", help="rank as a fraction of a dimension (default: what the checkpoint says, which it must be)")  # noqa: E501

    # Flags of training, of old command lines.
    no_beamable_mm: bool = flag("generation", default=False)
    spectral: bool = flag("factorization", default=False)
    spectral_quekey: bool = flag("factorization", default=False)
    spectral_outval: bool = flag("factorization", default=False)
    wd2fd: bool = flag("factorization", default=False)
    wd2fd_quekey: bool = flag("factorization", default=False)
    wd2fd_outval: bool = flag("factorization", default=False)
    frobenius_decay: float | None = flag("factorization", type=REAL)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nbest > self.beam:
            raise ValueError(f"--nbest {self.nbest} hypotheses cannot be had from --beam {self.beam}; raise it")
        if self.sampling and self.nbest != self.beam:
            raise ValueError(f"--sampling draws --beam {self.beam} translations: give --nbest {self.beam}, too")
        for name in ("sampling_topk", "sampling_topp"):
            if getattr(self, name) > 0 and not self.sampling:
                raise ValueError(f"--{name.replace('_', '-')} has no effect without --sampling")
        if self.sampling_topk > 0 and self.sampling_topp > 0:
            raise ValueError("--sampling-topk and --sampling-topp are two ways to choose words: give only one")
        if not self.max_len_a and self.min_len > self.max_len_b:
            raise ValueError(f"--min-len {self.min_len} is above --max-len-b {self.max_len_b}, the most")

    def completed(self) -> Any:
        """Return the settings, as `Computing` does, with a warning of flags that only have an effect in training."""
        parts = ("", "_quekey", "_outval")
        training = [f"{name}{part}" for name in ("spectral", "wd2fd") for part in parts]
        for name in [*training, "frobenius_decay"]:
            if getattr(self, name):
                warnings.warn(f"--{name.replace('_', '-')} only has an effect in training", stacklevel=2)
        return super().completed()


def _paths(text: str) -> list[Path]:
    names = [text] if Path(text).exists() else text.split(os.pathsep)  # as in fairseq
    return [Path(name) for name in names if name]


def start(args: Computing) -> devices.Computing:
    """Return `devices.start(args)`, in a process that keeps freed memory.

    Raises:
        UserError: for devices that are not there.
    """
    computing = devices.start(args)
    if computing.amp == torch.float16 and computing.device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU; --amp bf16 runs on the CPU, too")
    devices.keep_freed_memory()
    return computing
