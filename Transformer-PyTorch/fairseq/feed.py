"""What a run trains and validates on, batch by batch."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy

from lab.cli import UserError
from lab.devices import Computing
from lab.settings import Settings

from .batches import Batch, collate, epoch_batches, evaluation_batches, shard
from .config import TransformerConfig
from .corpus import Corpus, find_languages, load_dictionaries, load_split
from .dictionary import Dictionary


class Data(NamedTuple):
    """The data that the flags name."""

    languages: tuple[str, str]
    dictionaries: tuple[Dictionary, Dictionary]
    train: Corpus
    valid: dict[str, Corpus]
    """The validation subsets by name; the first one drives schedule and checkpoints."""


class Update(NamedTuple):
    """The batches of one update."""

    share: list[Batch]
    """The batches of this process."""
    counts: dict[str, int]
    """Tokens, sentences and samples of all processes; samples are one of the others, what the loss is divided by."""
    end: int
    """The number of batches of the epoch that are done after this update."""


def load_data(args: Settings) -> Data:
    """Return the data that the flags name.

    Raises:
        UserError: if they are missing or damaged.
    """
    languages = find_languages(args.data, args.source_lang, args.target_lang)
    dictionaries = load_dictionaries(args.data, *languages)
    subsets = [args.train_subset, *args.valid_subset.split(",")]
    train, *valid = (load_split(args.data, subset, *languages, dictionaries) for subset in subsets)
    return Data(languages, dictionaries, train, dict(zip(subsets[1:], valid)))


class Feed:
    """Batches of the data, within the limits of flags and model, shared among the processes.

    Raises:
        UserError: if there is nothing to train or validate on, or validation data do not fit the model.
    """

    def __init__(self, args: Settings, config: TransformerConfig, data: Data, computing: Computing):
        self.args, self.data, self.computing = args, data, computing
        self._limits = {
            "max_tokens": args.max_tokens,
            "max_positions": (
                min(args.max_source_positions, config.max_source_length),
                min(args.max_target_positions, config.max_target_length),
            ),
        }
        self.batches(1)
        for subset, corpus in data.valid.items():
            if not self._evaluation_batches(corpus):
                raise UserError(f"{args.data}: there is nothing to validate on in {subset}")

    def batches(self, epoch: int) -> list[numpy.ndarray]:
        """Return the batches of an epoch, counted from 1, as arrays of sentence numbers."""
        return epoch_batches(
            self.data.train,
            seed=self.args.seed,
            epoch=epoch,
            sample=self.args.sample_without_replacement,
            curriculum=self.args.curriculum,
            max_sentences=self.args.batch_size,
            **self._limits,
        )

    @property
    def updates_per_epoch(self) -> int:
        """Updates of the first epoch; the next ones have about as many."""
        return math.ceil(len(self.batches(1)) / (self.args.update_freq * self.computing.world_size))

    def updates(self, batches: list[numpy.ndarray], offset: int) -> Iterator[Update]:
        """Go through `batches` from number `offset` on. An update takes as many for every process: `update_freq`."""
        corpus, computing = self.data.train, self.computing
        size = self.args.update_freq * computing.world_size
        for begin in range(offset, len(batches), size):
            chunk = batches[begin : begin + size]
            share = [collate(corpus, ids) for ids in shard(chunk, computing.rank, computing.world_size) if len(ids)]
            yield Update(share, self._counts(corpus, chunk), begin + len(chunk))

    def validation(self, corpus: Corpus) -> tuple[Iterator[Batch], dict[str, int]]:
        """Return this process's share of the batches of validation data, and the counts of all."""
        batches = self._evaluation_batches(corpus)
        share = batches[self.computing.rank :: self.computing.world_size]
        return (collate(corpus, ids) for ids in share), self._counts(corpus, batches)

    def _evaluation_batches(self, corpus: Corpus) -> list[numpy.ndarray]:
        return evaluation_batches(
            corpus,
            max_sentences=self.args.batch_size_valid or self.args.batch_size,
            longest_first=True,
            skip_invalid=self.args.skip_invalid_size_inputs_valid_test,
            leave_out_empty=True,
            **self._limits,
        )

    def _counts(self, corpus: Corpus, batches: list[numpy.ndarray]) -> dict[str, int]:
        ids = numpy.concatenate(batches)
        tokens, sentences = int(corpus.target_sizes[ids].sum()), len(ids)
        return {"tokens": tokens, "sentences": sentences, "samples": sentences if self.args.sentence_avg else tokens}
