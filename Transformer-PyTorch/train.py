"""Train a Transformer to translate, dense or factorized (Khodak et al. 2021, section 5). `--help` lists the flags.

    python train.py data-bin/iwslt14.tokenized.de-en --arch transformer_small --rank-scale 0.5 --spectral --wd2fd ...

Killed at any moment, the same command goes on from its last checkpoint.
"""

from lab.cli import launch

# isort: split
from fairseq import options
from fairseq.training import train
from fairseq.training_flags import build_parser, model_config


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = build_parser(__doc__).parse_args(argv)
    config = model_config(args)
    train(args, config, options.start(args))


if __name__ == "__main__":
    launch(main, "train.py")
