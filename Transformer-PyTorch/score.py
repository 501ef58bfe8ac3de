"""BLEU of translations: of the tokens as they are, and below it sacreBLEU's of the detokenized text.

For example: python score.py --sys translations.txt --ref references.txt
"""

from lab.cli import Parser, UserError, launch, number

# isort: split
from fairseq import foreign, foreign_text, subwords
from fairseq.bleu import MAX_ORDER, detokenize, sacre_bleu, sacre_line, tokenized_bleu, without_matching_unknowns
from fairseq.text import decoded, name_of, opened


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="score.py", description=__doc__.splitlines()[0])
    add, order = parser.add_argument, number(int, least=1, most=MAX_ORDER)
    add("-s", "--sys", default="-", metavar="FILE", help="translations, one a line (default -, standard input)")
    add("-r", "--ref", required=True, metavar="FILE", help="references, one a line")
    add("-o", "--order", type=order, default=MAX_ORDER, metavar="N", help="longest n-grams of the tokenized score")
    add("--ignore-case", action="store_true", help="compare lower-cased text")
    add("--remove-bpe", nargs="?", const="subword_nmt", metavar="MARK", help=subwords.HELP)
    language = "language whose rules detokenize, and tokenize for sacreBLEU (default en); none: text as it is, 13a"
    add("--lang", default="en", metavar="CODE", help=language)
    parser.spell("--remove-bpe", "--post-process")
    foreign.add_flags(parser, *foreign_text.SCORE)
    return parser


def lines_of(name: str) -> list[str]:
    """Return the lines of a file, or of standard input for `-`."""
    with opened(name) as file:
        return list(decoded(file, name_of(name)))


def main(argv: list[str] | None = None) -> None:
    """Print both scores."""
    args = build_parser().parse_args(argv)
    if args.sys == args.ref == "-":
        raise UserError("--sys and --ref cannot both be standard input; give --sys FILE")
    system, references = lines_of(args.sys), lines_of(args.ref)
    system, references = (
        [subwords.join_subwords(line, args.remove_bpe) for line in side] for side in (system, references)
    )
    system, references = without_matching_unknowns(system, references)
    print(tokenized_bleu(system, references, args.order, args.ignore_case).line())
    if args.lang != "none":
        system, references = detokenize(system, args.lang), detokenize(references, args.lang)
    print(sacre_line(sacre_bleu(system, references, args.ignore_case, args.lang)))


if __name__ == "__main__":
    launch(main, "score.py")
