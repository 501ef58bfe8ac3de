"""Make the corpus of German and English words for numbers and dates, which needs no download, ready for train.py.

No pair is in two of training, validation and test set. The same seed gives the same text on every machine.
"""

import sys
from pathlib import Path

TRANSFORMER = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TRANSFORMER))  # the package fairseq is there

from fairseq.preparation.finish import write  # noqa: E402
from fairseq.preparation.numerals import draw  # noqa: E402

from lab.cli import Parser, UserError, launch, number  # noqa: E402

MOST = 200_000  # pairs, of 1.4 million numbers and dates; drawing the last ones would take ever longer


def build_parser() -> Parser:
    """Return the parser of this program's flags."""
    parser = Parser(description=__doc__)
    for split, pairs in {"train": 20000, "valid": 500, "test": 500}.items():
        count = number(int, least=1)
        parser.add_argument(f"--{split}", type=count, default=pairs, metavar="N", help="pairs")
    # fmt: off
    add = parser.add_argument
    add("--merges", type=number(int, least=1), default=300, metavar="N", help="subwords: merges learned from both languages")  # noqa: E501
    add("--seed", type=number(int, least=0, most=2**32 - 1), default=0, help="decides what is drawn")
    add("--data-dir", type=Path, default=TRANSFORMER, metavar="DIR", help="gets data/numbers.de-en with the text and data-bin/numbers.de-en for train.py (default: the folder of train.py)")  # noqa: E501
    # fmt: on
    parser.spell("--data-dir", "--destdir")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the flags and make the corpus."""
    args = build_parser().parse_args(argv)
    pairs = {"train": args.train, "valid": args.valid, "test": args.test}
    if sum(pairs.values()) > MOST:
        raise UserError(f"--train, --valid and --test must be {MOST} pairs together, at most")
    how = {"corpus": "numbers", **pairs, "merges": args.merges, "seed": args.seed}
    write(draw(pairs, args.seed), args.data_dir, "numbers.de-en", how, args.merges)


if __name__ == "__main__":
    launch(main, "make-numbers.py")
