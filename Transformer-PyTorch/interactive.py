"""Translate lines of text as they come, from a terminal or a pipe.

    python interactive.py data-bin/iwslt14.tokenized.de-en --path checkpoints/checkpoint_best.pt --remove-bpe < text.de

The text must look like that of the training data: tokenized, in subwords. --tokenizer and --bpe-codes make it so.
Answers every line at once, with lines that begin with O- (input), H- (score and hypothesis) and A- (positions of the
source words that its words are aligned with) and the line's number, from 0; a line without words, with too many, or
that is not UTF-8, with an empty hypothesis. Files are translated faster in batches: --input FILE --buffer-size 1000.
"""

import contextlib
import functools
import io
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.cli import UserError, launch

# isort: split
from fairseq import foreign, foreign_text, options
from fairseq.batches import collate, evaluation_batches
from fairseq.bleu import detokenize
from fairseq.corpus import Corpus
from fairseq.generation import Translator, alignment_text
from fairseq.search import Hypothesis
from fairseq.text import decoded, name_of, opened, read_lines
from sacremoses import MosesTokenizer
from subword_nmt.apply_bpe import BPE

from lab.settings import Parser, flag


@dataclass(frozen=True, kw_only=True)
class Settings(options.Generation):
    """What is translated and how; contradictions are a ValueError."""

    # fmt: off
    input: str = flag("data", default="-", metavar="FILE", help="text to translate (default -, standard input)")
    buffer_size: int = flag("data", default=0, type=options.COUNT, metavar="N", help="lines that are read, and translated together, before the first is answered (default 1, or --batch-size)")  # noqa: E501
    tokenizer: str = flag("data", default="space", choices=["moses", "space"], help="moses: tokenize and lower-case the input as the preparation scripts do, and detokenize the answers; space (default): words are separated by spaces")  # noqa: E501
    bpe_codes: Path | None = flag("data", metavar="FILE", help="cut the input into subwords by these merges of subword-nmt")  # noqa: E501
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dump:
            raise ValueError("--dump has no meaning here, as there are no references; redirect the output instead")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(Settings, prog="interactive.py", description=__doc__)
    foreign.add_flags(parser, *foreign_text.INTERACTIVE)
    return parser


def preparation(args: Settings, language: str) -> Callable[[str], str]:
    """Return what turns a line of input into text like that of the training data.

    Raises:
        UserError: if the file of merges cannot be used.
    """
    steps = []
    if args.tokenizer == "moses":
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


def complain(problem: object) -> None:
    """Say why a line is not translated; the next ones are."""
    print(f"interactive.py: warning: {problem}; it is not translated", file=sys.stderr)


def undecodable(error: UserError) -> str:
    """Return what stands for a line that is not UTF-8, after saying so."""
    complain(error)
    return ""


def answer(lines: list[str], translator: Translator, args: Settings) -> list[list[Hypothesis]]:
    """Return the hypotheses about each line; an empty one for a line without words or, with a warning, too many."""
    longest = min(args.max_source_positions, translator.max_positions[0])
    sentences = [translator.dictionaries[0].encode(line) for line in lines]
    for place, ids in enumerate(sentences):
        if len(ids) > longest:
            complain(f"{len(ids) - 1} words in a line are too many, the most is {longest - 1}")
            sentences[place] = ids[-1:]
    corpus = Corpus(sentences, None, *translator.dictionaries)
    limits = {"max_tokens": args.max_tokens, "max_sentences": args.batch_size, "max_positions": (longest, longest)}
    answers: list = [None] * len(lines)
    for ids in evaluation_batches(corpus, **limits, one_length=not translator.masks_padding):
        batch = collate(corpus, ids).to(translator.computing.device)
        for place, hypotheses in zip(batch.ids.tolist(), translator.translate(batch)):
            answers[place] = hypotheses
    return answers


def main(argv: list[str] | None = None) -> None:
    """Answer the lines of the input."""
    args = build_parser().parse_args(argv)
    size = args.buffer_size or args.batch_size or 1
    with opened(args.input) as file:
        translator = Translator.load(args, need_alignment=True)
        prepare = preparation(args, translator.languages[0])
        if file.isatty():
            print("type a sentence and press return; end with Ctrl-D", file=sys.stderr)
        lines = decoded(file, name_of(args.input), otherwise=undecodable)
        for first in itertools.count(step=size):
            buffered = list(itertools.islice(lines, size))
            if not buffered:
                break
            prepared = [prepare(line) for line in buffered]
            for number, line, source, hypotheses in zip(
                itertools.count(first), buffered, prepared, answer(prepared, translator, args)
            ):
                print(f"O-{number}\t{line}")
                for each in hypotheses[: args.nbest]:
                    text = translator.wording.text(each, source.split())
                    if args.tokenizer == "moses":
                        (text,) = detokenize([text], translator.languages[1])
                    print(f"H-{number}\t{each.score:.4f}\t{text}\nA-{number}\t{alignment_text(each)}")
            sys.stdout.flush()


if __name__ == "__main__":
    launch(main, "interactive.py")
