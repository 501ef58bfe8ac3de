"""Translate a split of a data folder, and score the translations.

    python generate.py data-bin/iwslt14.tokenized.de-en --path checkpoints/checkpoint_best.pt --remove-bpe

Prints for every sentence, unless --quiet, lines that begin with S- (source), T- (reference), H- (score and hypothesis),
P- (log-probabilities of its words) and A- (positions of the source words they are aligned with), then how long it took
and BLEU: first sacreBLEU's of the detokenized text, then that of the tokens as they are, which has the shorter name.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from lab.cli import UserError, launch

# isort: split
from fairseq import foreign, foreign_text, options
from fairseq.batches import Batch, collate, evaluation_batches
from fairseq.bleu import Score, detokenize, sacre_bleu, sacre_line, tokenized_bleu
from fairseq.corpus import Corpus, load_split
from fairseq.generation import Translator, Wording, alignment_text
from fairseq.search import Hypothesis
from fairseq.subwords import UNKNOWN_REFERENCE, join_subwords

from lab.checkpoint import save_json, write_whole
from lab.record import progress
from lab.settings import Parser, flag


@dataclass(frozen=True, kw_only=True)
class Settings(options.Generation):
    """What is translated and how; contradictions are a ValueError."""

    # fmt: off
    gen_subset: str = flag("data", default="test", metavar="SPLIT", help="split to translate")
    num_shards: int = flag("data", default=1, type=options.POSITIVE, metavar="N", help="translate every N-th batch")
    shard_id: int = flag("data", default=0, type=options.COUNT, metavar="I", help="beginning with this one, from 0")
    prefix_size: int = flag("generation", default=0, type=options.COUNT, metavar="N", help="begin with N words of the reference")  # noqa: E501
    score_reference: bool = flag("generation", default=False, help="score the references instead of translating")
    quiet: bool = flag("run", default=False, help="only print the last lines")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_id >= self.num_shards:
            raise ValueError(f"--shard-id {self.shard_id} must be below --num-shards, {self.num_shards}")
        if self.score_reference and (self.sampling or self.prefix_size):
            raise ValueError("--score-reference does not go with --sampling or --prefix-size, as nothing is generated")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(Settings, prog="generate.py", description=__doc__)
    foreign.add_flags(parser, *foreign_text.GENERATE)
    return parser


@dataclass
class Tally:
    """What the last lines are about."""

    sentences: int = 0
    tokens: int = 0
    """Words of the best hypotheses, ends counted."""
    system: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)


class Printer:
    """Lines about the sentences of a corpus."""

    def __init__(self, corpus: Corpus, wording: Wording, nbest: int):
        self.corpus, self.wording, self.nbest = corpus, wording, nbest

    def source(self, number: int) -> str:
        """Return the text of a source sentence, in subwords."""
        if self.corpus.source_lines is not None:
            return self.corpus.source_lines[number]
        return self.corpus.source_dictionary.string(self.corpus.source[number])

    def reference(self, number: int) -> str:
        """Return the text of a reference as it is compared."""
        mark = self.wording.remove_bpe
        if self.corpus.target_lines is not None:
            return join_subwords(" ".join(self.corpus.target_lines[number].split()), mark)
        return self.corpus.target_dictionary.string(self.corpus.target[number], mark, UNKNOWN_REFERENCE)

    def lines(self, number: int, hypotheses: list[Hypothesis]) -> Iterator[str]:
        """Yield what is printed about a sentence."""
        source = self.source(number)
        yield f"S-{number}\t{join_subwords(source, self.wording.remove_bpe)}"
        if self.corpus.target is not None:
            yield f"T-{number}\t{self.reference(number)}"
        for each in hypotheses[: self.nbest]:
            yield f"H-{number}\t{each.score:.4f}\t{self.wording.text(each, source.split())}"
            yield f"P-{number}\t{' '.join(f'{value:.4f}' for value in each.log_probs)}"
            if each.alignment is not None:
                yield f"A-{number}\t{alignment_text(each)}"


def translate_all(translator: Translator, printer: Printer, batches: list, args: Settings) -> Tally:
    """Translate the batches, print what is asked for, and return what came out."""
    corpus, tally = printer.corpus, Tally()
    show = not args.no_progress_bar and args.log_format in (None, "tqdm")
    with progress(batches, len(batches), f"generate {args.gen_subset}", show) as bar:
        for ids in bar:
            batch: Batch = collate(corpus, ids).to(translator.computing.device)
            found = translator.score_references(batch) if args.score_reference else translator.translate(batch)
            for number, hypotheses in zip(batch.ids.tolist(), found):
                tally.sentences += 1
                tally.tokens += len(hypotheses[0].words)
                if corpus.target is not None:
                    tally.system.append(printer.wording.text(hypotheses[0], printer.source(number).split()))
                    tally.references.append(printer.reference(number))
                if not args.quiet:
                    for line in printer.lines(number, hypotheses):
                        bar.write(line)
    return tally


def report(tally: Tally, seconds: float, language: str, args: Settings) -> None:
    """Print the last lines; write them, and as JSON all that is known, if asked to and there are references."""
    speed = tally.tokens / seconds if seconds else 0.0
    done = f"| Translated {tally.sentences} sentences ({tally.tokens} tokens) in {seconds:.1f}s ({speed:.2f} tokens/s)"
    if not tally.references:
        print(done)
        return
    tokenized = tokenized_bleu(tally.system, tally.references)
    sacre = sacre_bleu(*(detokenize(side, language) for side in (tally.system, tally.references)), language=language)
    score = f"| Generate {args.gen_subset} with beam={args.beam}: {tokenized.line()}"
    print(f"| {sacre_line(sacre)}", done, score, sep="\n")
    if args.dump:
        fields = {
            "subset": args.gen_subset,
            "beam": args.beam,
            "path": [str(path) for path in args.path],
            "sentences": tally.sentences,
            "tokens": tally.tokens,
            "seconds": seconds,
            "tokens per second": speed,
            "tokenized BLEU": _fields(tokenized),
            "sacreBLEU": _fields(sacre),
        }
        try:
            save_json(args.dump.with_name(args.dump.name + ".json"), fields)
            write_whole(args.dump, lambda file: file.write(f"{done}\n{score}\n".encode()))
        except OSError as error:
            raise UserError(f"cannot write {args.dump}: {error.strerror}") from None


def _fields(score: Score) -> dict:
    return {**asdict(score), "ratio": score.ratio}


def main(argv: list[str] | None = None) -> None:
    """Translate and score."""
    args = build_parser().parse_args(argv)
    if args.dump and (args.dump.is_dir() or not args.dump.parent.is_dir()):  # before anything takes time
        raise UserError(f"--dump {args.dump} must be a file in a folder that exists")
    translator = Translator.load(args, need_alignment=not args.quiet, prefix_size=args.prefix_size)
    corpus = load_split(
        args.data,
        args.gen_subset,
        *translator.languages,
        translator.dictionaries,
        text=args.replace_unk is not None,
        need_target=args.score_reference or args.prefix_size > 0,
    )
    if not len(corpus):
        raise UserError(f"{args.gen_subset} in {args.data} has no sentences")
    limits = (args.max_source_positions, args.max_target_positions)
    batches = evaluation_batches(
        corpus,
        max_tokens=args.max_tokens,
        max_sentences=args.batch_size,
        max_positions=tuple(map(min, limits, translator.max_positions)),
        skip_invalid=args.skip_invalid_size_inputs_valid_test,
        one_length=not translator.masks_padding,
    )
    batches = batches[args.shard_id :: args.num_shards]
    tally = translate_all(translator, Printer(corpus, translator.wording, args.nbest), batches, args)
    report(tally, translator.seconds, translator.languages[1], args)


if __name__ == "__main__":
    launch(main, "generate.py")
