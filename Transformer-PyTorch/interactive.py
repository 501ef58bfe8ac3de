"""Translate lines of text as they come, from a terminal or a pipe.

    python interactive.py data-bin/iwslt14.tokenized.de-en --path checkpoints/checkpoint_best.pt --remove-bpe < text.de

The text must look like that of the training data: tokenized, in subwords. --tokenizer and --bpe-codes make it so.
Answers every line at once, with lines that begin with O (input), H (score and hypothesis) and A (positions of the
source words that its words are aligned with); a line without words, or with too many, with an empty hypothesis.
"""

import argparse
import contextlib
import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path

from fairseq import options
from fairseq.batches import collate
from fairseq.bleu import detokenize
from fairseq.corpus import Corpus
from fairseq.dictionary import Dictionary
from fairseq.generation import Translator, alignment_text
from fairseq.search import Hypothesis
from fairseq.text import decoded, read_lines
from sacremoses import MosesTokenizer
from subword_nmt.apply_bpe import BPE

from lab.cli import Parser, UserError, run


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="interactive.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_data_flags(parser)
    options.add_generation_flags(parser)
    add = parser.add_argument_group("text").add_argument
    moses = "moses: tokenize and lower-case the input as the preparation scripts do, and detokenize the answers"
    add("--tokenizer", choices=["moses"], help=moses)
    add("--bpe-codes", type=Path, metavar="FILE", help="cut the input into subwords by these merges of subword-nmt")
    options.add_rank_flags(parser, rank_scale=None)
    options.add_output_flags(parser)
    options.add_device_flags(parser, training=False)
    return parser


def check(args: argparse.Namespace) -> None:
    """Look for what is wrong with the flags.

    Raises:
        UserError: if they contradict each other, or what this program does.
    """
    options.check_generation(args)
    if args.max_sentences is not None:
        raise UserError("--batch-size has no meaning here, as every line is answered at once; leave it out")
    if args.dump:
        raise UserError("--dump has no meaning here, as there are no references; redirect the output instead")


def preparation(args: argparse.Namespace, language: str) -> Callable[[str], str]:
    """Return what turns a line of input into text like that of the training data.

    Raises:
        UserError: if the file of merges cannot be used.
    """
    steps = []
    if args.tokenizer:
        tokenizer = MosesTokenizer(lang=language)
        steps.append(lambda line: tokenizer.tokenize(line, return_str=True).lower())
    if args.bpe_codes:
        codes = io.StringIO("\n".join(read_lines(args.bpe_codes)) + "\n")
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                steps.append(BPE(codes).segment)
        except (SystemExit, ValueError):  # it leaves the program at a line that is no merge
            raise UserError(f"{args.bpe_codes} is not a file of merges as subword-nmt learn-bpe writes") from None
    return lambda line: functools.reduce(lambda text, step: step(text), steps, line)


def answer(line: str, translator: Translator, longest: int) -> list[Hypothesis]:
    """Return the hypotheses about a line; an empty one for a line without words, or, with a warning, too many.

    Args:
        longest: most words of a line, its end counted.
    """
    ids = translator.dictionaries[0].encode(line)
    if len(ids) > longest:
        too_long = f"{len(ids) - 1} words in a line are too many, the most is {longest - 1}; it is not translated"
        print(f"interactive.py: warning: {too_long}", file=sys.stderr)
    if not 1 < len(ids) <= longest:
        return [Hypothesis([Dictionary.eos], 0.0, [0.0], [])]
    batch = collate(Corpus([ids], None, *translator.dictionaries), [0])
    (hypotheses,) = translator.translate(batch.to(translator.computing.device))
    return hypotheses


def main(argv: list[str] | None = None) -> None:
    """Answer the lines of standard input."""
    args = build_parser().parse_args(argv)
    check(args)
    translator = Translator.load(args, need_alignment=True)
    longest = min(args.max_source_positions, translator.max_positions[0])
    prepare = preparation(args, translator.languages[0])
    if sys.stdin.isatty():
        print("type a sentence and press return; end with Ctrl-D", file=sys.stderr)
    for line in decoded(sys.stdin.buffer, "standard input"):
        print(f"O\t{line}")
        prepared = prepare(line)
        for each in answer(prepared, translator, longest)[: args.nbest]:
            text = translator.wording.text(each, prepared.split())
            if args.tokenizer:
                (text,) = detokenize([text], translator.languages[1])
            print(f"H\t{each.score:.4f}\t{text}\nA\t{alignment_text(each)}")
        sys.stdout.flush()


if __name__ == "__main__":
    run(main, "interactive.py")
