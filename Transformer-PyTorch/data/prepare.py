"""Prepare IWSLT'14 or Multi30k, German and English, for train.py: get, tokenize, clean, split, cut, number.

Downloads have no published checksums: the numbers of pairs are compared with published ones, and with --sha256 files
must be those you mean. The same files give the same result on every machine.
"""

import argparse
import re
import sys
from pathlib import Path

TRANSFORMER = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TRANSFORMER))  # the package fairseq is there

from fairseq.preparation import corpora, finish  # noqa: E402
from fairseq.preparation.fetch import Files  # noqa: E402

from lab.cli import Parser, UserError, launch, number  # noqa: E402


def build_parser() -> Parser:
    """Return the parser of this program's flags."""
    parser = Parser(prog="prepare", description=__doc__)
    # fmt: off
    add = parser.add_argument
    add("corpus", choices=sorted(corpora.CORPORA))
    add("--from", dest="at_hand", type=Path, metavar="DIR", help="folder with the files, instead of downloading them: de-en.tgz or what it holds; or train, valid, test_2016_flickr, test_2017_flickr with .de, .en or .de.gz, .en.gz")  # noqa: E501
    add("--url", action="append", metavar="URL", help="address of a folder to download from instead; repeat it for mirrors")  # noqa: E501
    add("--sha256", action="append", default=[], type=_checksum, metavar="FILE=HEX", help="checksum that a file must have; repeat it for other files")  # noqa: E501
    add("--any-size", action="store_true", help="accept other numbers of pairs than the published ones")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--merges", type=number(int, least=1), metavar="N", help="subwords: merges learned from both languages (default: 25000 for iwslt14, 10000 for multi30k)")  # noqa: E501
    group.add_argument("--words", type=number(int, least=1), metavar="N", help="whole words instead of subwords, unknown if seen less than N times")  # noqa: E501
    add("--data-dir", type=Path, default=TRANSFORMER, metavar="DIR", help="gets data/NAME with the text and data-bin/NAME for train.py (default: the folder of train.py)")  # noqa: E501
    # fmt: on
    parser.spell("--data-dir", "--destdir")
    return parser


def _checksum(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise argparse.ArgumentTypeError(f"must be a file name, = and 64 hexadecimal digits, not {text}")
    return name, value


def main(argv: list[str] | None = None) -> None:
    """Read the flags and prepare the corpus they name."""
    args = build_parser().parse_args(argv)
    corpus = corpora.CORPORA[args.corpus]
    if args.at_hand and not args.at_hand.is_dir():
        raise UserError(f"--from {args.at_hand}: no such folder")
    name = corpus.name.replace("tokenized", "words") if args.words else corpus.name
    merges = None if args.words else args.merges or corpus.merges
    how = {"corpus": args.corpus, "merges": merges, "words": args.words}
    finish.check_how(args.data_dir / "data" / name, how)  # before the long work
    kept = args.data_dir / "data" / "orig" / args.corpus
    files = Files(args.at_hand, args.url or corpus.mirrors, kept, dict(args.sha256))
    text = corpora.prepared(corpus, files, args.any_size)
    finish.write(text, args.data_dir, name, how, merges, args.words or 0)


if __name__ == "__main__":
    launch(main, "prepare")
