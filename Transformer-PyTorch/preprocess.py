"""Turn parallel text into the numbered sentences and dictionaries that train.py and generate.py read.

    python preprocess.py -s de -t en --trainpref text/train --validpref text/valid --testpref text/test

reads text/train.de, text/train.en and so on: UTF-8, a sentence per line, words separated by spaces.
"""

import argparse
from pathlib import Path

from fairseq.binarize import Settings, binarize

from lab.cli import Parser, UserError, number, run


def build_parser() -> Parser:
    """Return the parser of this program's flags."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--source-lang", required=True, metavar="LANG", help="language to translate from")
    parser.add_argument("-t", "--target-lang", required=True, metavar="LANG", help="language to translate into")
    group = parser.add_argument_group("text: the beginnings of file names, which go on with .LANG")
    group.add_argument("--trainpref", metavar="P", help="training text, whose words the dictionaries get")
    group.add_argument("--validpref", metavar="P,...", help="validation texts; they become valid, valid1, ...")
    group.add_argument("--testpref", metavar="P,...", help="test texts; they become test, test1, ...")
    group.add_argument("--only-source", action="store_true", help="there are no translations")
    group.add_argument(
        "--alignfile", type=Path, metavar="FILE", help="links i-j of the words of each training pair; gives a lexicon"
    )
    group = parser.add_argument_group("dictionaries")
    for side, name in (("src", "source"), ("tgt", "target")):
        group.add_argument(
            f"--threshold{side}",
            type=number(int, least=0),
            default=0,
            metavar="N",
            help=f"drop {name} words seen less often",
        )
        group.add_argument(
            f"--nwords{side}",
            type=number(int, least=-1),
            default=-1,
            metavar="N",
            help=f"keep the N most frequent {name} words; -1: all",
        )
        group.add_argument(f"--{side}dict", type=Path, metavar="FILE", help=f"use this {name} dictionary")
    group.add_argument("--joined-dictionary", action="store_true", help="one dictionary, of the words of both languages")
    group = parser.add_argument_group("output")
    group.add_argument("--destdir", type=Path, default=Path("data-bin"), metavar="DIR", help="default: %(default)s")
    group.add_argument(
        "--output-format", choices=["binary", "raw"], default="binary", help="raw copies the text (default: %(default)s)"
    )
    group.add_argument(
        "--dataset-impl",
        choices=["mmap", "legacy"],
        default="mmap",
        help="binary format: mmap is half as large and what fairseq writes today, legacy is what its versions up to 2018 "
        "read; train.py reads both (default: %(default)s)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the flags and write the data."""
    args = build_parser().parse_args(argv)
    _check(args)
    splits = {"train": args.trainpref} if args.trainpref else {}
    for name, prefixes in (("valid", args.validpref), ("test", args.testpref)):
        for position, prefix in enumerate(prefixes.split(",") if prefixes else []):
            splits[f"{name}{position or ''}"] = prefix
    if not splits:
        raise UserError("no text given: --trainpref, --validpref or --testpref")
    binarize(
        Settings(
            args.source_lang,
            args.target_lang,
            splits,
            args.destdir,
            thresholds=(args.thresholdsrc, args.thresholdtgt),
            nwords=(args.nwordssrc, args.nwordstgt),
            dictionaries=(args.srcdict, args.tgtdict),
            joined=args.joined_dictionary,
            only_source=args.only_source,
            alignment=args.alignfile,
            format="raw" if args.output_format == "raw" else args.dataset_impl,
        )
    )


def _check(args: argparse.Namespace) -> None:
    """Raise a `UserError` for flags that contradict each other."""
    if args.source_lang == args.target_lang:
        raise UserError(f"--source-lang and --target-lang are both {args.source_lang}")
    if args.joined_dictionary and (args.srcdict or args.tgtdict):
        raise UserError("--joined-dictionary makes a dictionary: leave out --srcdict and --tgtdict")
    if args.joined_dictionary and (args.thresholdtgt or args.nwordstgt >= 0):
        raise UserError("--joined-dictionary: limit its words with --thresholdsrc and --nwordssrc")
    for side in ("src", "tgt"):
        limited = getattr(args, f"threshold{side}") or getattr(args, f"nwords{side}") >= 0
        if getattr(args, f"{side}dict") and limited:
            raise UserError(f"--{side}dict is used as it is: leave out --threshold{side} and --nwords{side}")
    if not args.trainpref and not (args.srcdict and (args.tgtdict or args.only_source)):
        raise UserError("dictionaries are made of the training text: give --trainpref, or --srcdict and --tgtdict")
    if args.alignfile and (not args.trainpref or args.only_source):
        raise UserError("--alignfile links training pairs: give --trainpref and no --only-source")


if __name__ == "__main__":
    run(main, "preprocess.py")
