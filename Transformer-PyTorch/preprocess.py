"""Turn parallel text into the numbered sentences and dictionaries that train.py and generate.py read.

    python preprocess.py -s de -t en --trainpref text/train --validpref text/valid --testpref text/test

reads text/train.de, text/train.en and so on: UTF-8, a sentence per line, words separated by spaces.
"""

import argparse
from pathlib import Path

from lab.cli import Parser, UserError, launch, number

# isort: split
from fairseq import foreign, foreign_text, indexed
from fairseq.binarize import Settings, write_numbered


def build_parser() -> Parser:
    """Return the parser of this program's flags."""
    parser = Parser(prog="preprocess.py", description=__doc__)
    parser.add_argument("-s", "--source-lang", required=True, metavar="LANG", help="language to translate from")
    parser.add_argument("-t", "--target-lang", required=True, metavar="LANG", help="language to translate into")
    # fmt: off
    add = parser.add_argument_group("text: beginnings of file names, which go on with .LANG").add_argument
    add("--trainpref", metavar="P", help="training text; its words make the dictionaries")
    add("--validpref", metavar="P,...", help="validation texts; they become valid, valid1, ...")
    add("--testpref", metavar="P,...", help="test texts; they become test, test1, ...")
    add("--only-source", action="store_true", help="there are no translations")
    add("--alignfile", type=Path, metavar="FILE", help="links i-j of the words of each training pair; gives a lexicon, alignment.SRC-TGT.txt")  # noqa: E501
    add = parser.add_argument_group("dictionaries").add_argument
    for side, name in (("src", "source"), ("tgt", "target")):
        add(f"--threshold{side}", type=number(int, least=0), default=0, metavar="N", help=f"leave out {name} words seen less often (default 0)")  # noqa: E501
        add(f"--nwords{side}", type=number(int, least=-1), default=-1, metavar="N", help=f"keep the N most frequent {name} words (default -1: all)")  # noqa: E501
        add(f"--{side}dict", type=Path, metavar="FILE", help=f"use this {name} dictionary")
    add("--joined-dictionary", action="store_true", help="one dictionary of the words of both languages, or that of --srcdict for both")  # noqa: E501
    add = parser.add_argument_group("output").add_argument
    add("--destdir", type=Path, default=Path("data-bin"), metavar="DIR", help="gets the data")
    add("--output-format", choices=["binary", "raw"], default="binary", help="raw copies text")
    add("--dataset-impl", choices=[*indexed.FORMATS, "raw"], default="mmap", help="binary format: mmap, half as large and what fairseq writes since 2019, or legacy, for older versions; train.py reads both; raw is that of --output-format")  # noqa: E501
    # fmt: on
    parser.spell("--destdir", "--data")
    foreign.add_flags(parser, *foreign_text.PREPROCESS)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the flags and write the data."""
    args = build_parser().parse_args(argv)
    _check(args)
    splits = {"train": args.trainpref} if args.trainpref else {}
    for name, prefixes in (("valid", args.validpref), ("test", args.testpref)):
        for position, prefix in enumerate(prefixes.split(",") if prefixes else []):
            splits[f"{name}{position or ''}"] = prefix
    write_numbered(
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
    """Raise a `UserError` for flags that contradict each other, or are too few."""
    if not (args.trainpref or args.validpref or args.testpref):
        raise UserError("no text given: --trainpref, --validpref or --testpref")
    if args.source_lang == args.target_lang:
        raise UserError(f"--source-lang and --target-lang are both {args.source_lang}")
    given = {path for path in (args.srcdict, args.tgtdict) if path}
    if args.joined_dictionary and len(given) == 2:
        raise UserError("--joined-dictionary is one for both: give --srcdict alone")
    if args.joined_dictionary and given and (args.thresholdsrc or args.nwordssrc >= 0):
        raise UserError("--srcdict is used as it is: leave out --thresholdsrc and --nwordssrc")
    if args.joined_dictionary and (args.thresholdtgt or args.nwordstgt >= 0):
        raise UserError("--joined-dictionary: limit its words with --thresholdsrc and --nwordssrc")
    for side in ("src", "tgt"):
        limited = getattr(args, f"threshold{side}") or getattr(args, f"nwords{side}") >= 0
        if getattr(args, f"{side}dict") and limited:
            raise UserError(f"--{side}dict is used as it is: leave out --threshold{side} and --nwords{side}")
    enough = given if args.joined_dictionary else args.srcdict and (args.tgtdict or args.only_source)
    if not args.trainpref and not enough:
        raise UserError("dictionaries are made of the training text: give --trainpref, or --srcdict and --tgtdict")
    if args.alignfile and (not args.trainpref or args.only_source):
        raise UserError("--alignfile links training pairs: give --trainpref and no --only-source")


if __name__ == "__main__":
    launch(main, "preprocess.py")
