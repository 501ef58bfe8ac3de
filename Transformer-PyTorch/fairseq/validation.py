"""Validation: the losses of every subset and, if asked for, BLEU of its translations."""

from collections.abc import Callable, Mapping

import torch.distributed as dist

from lab.cli import number
from lab.settings import Settings

from .batches import Batch
from .corpus import Corpus
from .feed import Feed
from .generation import Translator, Wording
from .meter import Loss
from .search import SearchSettings
from .subwords import UNKNOWN_REFERENCE
from .trainer import Trainer

METRICS: Mapping[str, Callable[[Loss], float]] = {
    "loss": lambda loss: loss.loss,
    "nll_loss": lambda loss: loss.nll,
    "ppl": lambda loss: loss.nll,
    "bleu": lambda loss: -loss.bleu,
}
"""What can make an epoch the best: the lowest of these values."""

# Settings of `--eval-bleu-args`, by fairseq's names, and what reads their values.
SEARCH = {
    "beam": number(int, least=1),
    "lenpen": number(float, least=0),
    "unkpen": number(float),
    "max_len_a": number(float, least=0),
    "max_len_b": number(int, least=0),
}


class Validation:
    """Validates the model of a trainer on the data of a feed; all processes take part."""

    def __init__(self, args: Settings, feed: Feed, trainer: Trainer):
        self.args, self.feed, self.trainer = args, feed, trainer
        self.translator = _translator(args, feed, trainer) if args.eval_bleu else None

    def __call__(self) -> dict[str, Loss]:
        """Return what every subset leads to, by its name.

        Raises:
            RunError: if a loss is not finite.
        """
        found = {}
        for subset, corpus in self.feed.data.valid.items():
            share, counts = self.feed.validation(corpus)
            loss = self.trainer.evaluate(share, counts["tokens"], counts["samples"])
            found[subset] = loss._replace(bleu=self._bleu(corpus)) if self.translator else loss
        return found

    def _bleu(self, corpus: Corpus) -> float:
        from .bleu import detokenize, sacre_bleu, tokenized_bleu  # slow to import, and not needed without --eval-bleu

        pairs: list[tuple[str, str]] = []
        for batch in self.feed.validation(corpus)[0]:
            pairs += self._translated(corpus, batch.to(self.trainer.computing.device))
        if self.trainer.computing.world_size > 1:
            shares: list = [None] * self.trainer.computing.world_size
            dist.all_gather_object(shares, pairs)
            pairs = sum(shares, [])
        system, references = map(list, zip(*pairs))
        if self.args.eval_bleu_print_samples and self.trainer.computing.is_main:
            print(f"| translation: {system[0]}", f"| reference: {references[0]}", sep="\n")
        if self.args.eval_tokenized_bleu:
            return tokenized_bleu(system, references).score
        language = self.feed.data.languages[1]
        if self.args.eval_bleu_detok == "moses":
            system, references = detokenize(system, language), detokenize(references, language)
        return sacre_bleu(system, references, language=language).score

    def _translated(self, corpus: Corpus, batch: Batch) -> list[tuple[str, str]]:
        """Return the translation and the reference of every sentence of a batch."""
        mark, dictionary = self.args.eval_bleu_remove_bpe, corpus.target_dictionary
        texts = [self.translator.wording.text(hypotheses[0]) for hypotheses in self.translator.translate(batch)]
        references = [dictionary.string(corpus.target[row], mark, UNKNOWN_REFERENCE) for row in batch.ids]
        return list(zip(texts, references))


def _translator(args: Settings, feed: Feed, trainer: Trainer) -> Translator:
    settings = dict(args.eval_bleu_args)
    lengths = {name: settings.pop(name) for name in ("max_len_a", "max_len_b") if name in settings}
    data, dictionary = feed.data, feed.data.dictionaries[1]
    beam = min(settings.pop("beam", 5), len(dictionary) - 1)
    return Translator(
        [trainer.model],
        data.languages,
        data.dictionaries,
        Wording(dictionary, args.eval_bleu_remove_bpe),
        SearchSettings(beam=beam, **settings),
        trainer.computing,
        **lengths,
    )
