"""Flags that several programs share. Each program adds its own; a flag of old command lines keeps its spelling."""

import argparse
from pathlib import Path

from lab.cli import number

COUNT, POSITIVE, REAL = number(int, least=0), number(int, least=1), number(float, least=0)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the data folder, the languages, and what limits sentences and batches."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    # fmt: off
    add("data", type=Path, metavar="DIR", help="folder that preprocess.py wrote")
    add("--source-lang", "-s", metavar="LANG", help="language to translate from (default: that of the files in DIR)")
    add("--target-lang", "-t", metavar="LANG", help="language to translate to (default: that of the files in DIR)")
    add("--max-source-positions", type=POSITIVE, default=1024, metavar="N", help="longest source in tokens (default 1024)")
    add("--max-target-positions", type=POSITIVE, default=1024, metavar="N", help="longest target in tokens (default 1024)")
    add("--skip-invalid-size-inputs-valid-test", action="store_true", help="skip pairs that are empty or too long when evaluating, instead of stopping")  # noqa: E501
    add("--max-tokens", type=POSITIVE, default=6000, metavar="N", help="tokens of a batch, padding included (default 6000)")
    add("--max-sentences", "--batch-size", type=POSITIVE, metavar="N", help="sentences of a batch (default: any number)")
    # fmt: on


def add_rank_flags(parser: argparse.ArgumentParser, rank_scale: float | None = 0.0) -> None:
    """Add the flags of factorized layers. `rank_scale` is the default of `--rank-scale`."""
    group = parser.add_argument_group("factorization")
    add = group.add_argument
    # fmt: off
    add("--rank-scale", type=REAL, default=rank_scale, help="rank as a fraction of a dimension; 0 and 1 are dense")
    add("--spectral", action="store_true", help="spectral initialization of the two-factor layers")
    add("--spectral-quekey", action="store_true", help="spectral initialization of each head's query-key product")
    add("--spectral-outval", action="store_true", help="spectral initialization of each head's output-value product")
    add("--wd2fd", action="store_true", help="Frobenius decay instead of weight decay on the two-factor layers")
    add("--wd2fd-quekey", action="store_true", help="the same on the query-key products of the heads")
    add("--wd2fd-outval", action="store_true", help="the same on the output-value products of the heads")
    add("--frobenius-decay", type=REAL, metavar="L", help="coefficient of Frobenius decay (default: that of --weight-decay)")
    # fmt: on


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Add what is printed, how often and where to."""
    group = parser.add_argument_group("output")
    add = group.add_argument
    # fmt: off
    add("--no-progress-bar", action="store_true", help="lines instead of a progress bar")
    add("--log-interval", type=POSITIVE, default=1000, metavar="N", help="batches between lines (default 1000)")
    add("--log-format", choices=("json", "none", "simple", "tqdm"), help="default: a bar (tqdm) on a terminal, else simple")
    add("--dump", type=Path, metavar="FILE", help="file for the last two lines of generate.py")
    # fmt: on
