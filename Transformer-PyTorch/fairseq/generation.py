"""What generate.py and interactive.py have in common: translating a batch, and the text of what comes out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from factorized import FactorizedLinear
from factorized.layers.heads import OutputValue, QueryKey
from lab.cli import RunError, UserError
from lab.devices import Computing
from lab.settings import Settings

from . import options
from .batches import Batch
from .checkpoint import load_model
from .corpus import find_languages, load_dictionaries
from .dictionary import Dictionary
from .search import Hypothesis, SearchSettings, average, beam_search
from .subwords import join_subwords
from .text import read_lines
from .transformer import Transformer


@dataclass(frozen=True)
class Wording:
    """How numbers of words become text."""

    dictionary: Dictionary
    remove_bpe: str | None = None
    """How subwords are joined; see `subwords.join_subwords`."""
    lexicon: Mapping[str, str] | None = None
    """If not None, unknown words become what this has for the source word they are aligned with, or that word."""

    def text(self, hypothesis: Hypothesis, source: Sequence[str] = ()) -> str:
        """Return the text of a hypothesis about the words `source`."""
        words = [self.dictionary[number] for number in hypothesis.words[:-1]]
        if self.lexicon is not None and hypothesis.alignment is not None:
            for place, position in enumerate(hypothesis.alignment[:-1]):
                # the end of the source is no word
                if hypothesis.words[place] == Dictionary.unk and position < len(source):
                    words[place] = self.lexicon.get(source[position], source[position])
        return join_subwords(" ".join(words), self.remove_bpe)


def read_lexicon(replace_unk: Path | bool | None) -> dict[str, str] | None:
    """Return the dictionary that `--replace-unk` names, an empty one if it names none, or None without the flag.

    Raises:
        UserError: if the file is missing, or a line has no two words.
    """
    if replace_unk is None:
        return None
    lexicon: dict[str, str] = {}
    for number, line in enumerate(read_lines(replace_unk) if isinstance(replace_unk, Path) else (), 1):
        words = line.split()
        if len(words) < 2:
            raise UserError(f"{replace_unk}, line {number}: must be a source and a target word, not {line[:40]!r}")
        lexicon[words[0]] = words[1]
    return lexicon


def shorten(model: Transformer, dtype: torch.dtype) -> None:
    """Convert, in place, the matrices that autocast to `dtype` would convert whenever they are used.

    What comes out stays the same, bit for bit, but where a factorized layer composes its weight: there the factors are
    rounded instead of their product. A model that is trained further needs all digits.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, FactorizedLinear, QueryKey, OutputValue)):
            module.to(dtype)


def alignment_text(hypothesis: Hypothesis) -> str:
    """Return the alignment as printed: for every word the position of a source word, from 0."""
    return " ".join(map(str, hypothesis.alignment or ()))


@dataclass
class Translator:
    """Models that translate together, how they search, and what their words are."""

    models: Sequence[Transformer]
    languages: tuple[str, str]
    dictionaries: tuple[Dictionary, Dictionary]
    wording: Wording
    settings: SearchSettings
    computing: Computing
    max_len_a: float = 0.0
    max_len_b: int = 200
    """A translation has at most a * (words of the source, end counted) + b words."""
    prefix_size: int = 0
    """Words of the reference that every translation starts with."""
    need_alignment: bool = False
    generator: torch.Generator | None = None
    seconds: float = field(default=0.0, init=False)
    """What translating has taken so far."""

    @classmethod
    def load(cls, args: Settings, *, need_alignment: bool, prefix_size: int = 0) -> "Translator":
        """Return the translator that the flags ask for; see `options.Generation`.

        Raises:
            UserError: if data folder, device, a checkpoint or the file of `--replace-unk` cannot be used, or a model
                has another rank scale than the flags say.
        """
        lexicon = read_lexicon(args.replace_unk)
        computing = options.start(args)
        languages = find_languages(args.data, args.source_lang, args.target_lang)
        dictionaries = load_dictionaries(args.data, *languages)
        models = [load_model(path, languages, dictionaries, computing.device) for path in args.path]
        if computing.amp:
            for model in models:
                shorten(model, computing.amp)
        for path, model in zip(args.path, models):
            found, wanted = model.config.rank_scale, args.rank_scale
            if wanted is not None and (found or 1.0) != (wanted or 1.0):  # 0 and 1 are both dense
                raise UserError(f"{path} has rank scale {found}, not {wanted}; --rank-scale can be left out")
        settings = SearchSettings(
            beam=args.beam if args.sampling else min(args.beam, len(dictionaries[1]) - 1),
            early_stop=not args.no_early_stop,
            normalize=not args.unnormalized,
            lenpen=args.lenpen,
            unkpen=args.unkpen,
            min_len=args.min_len,
            temperature=args.temperature,
            sampling=args.sampling,
            topk=args.sampling_topk if args.sampling_topk > 0 else None,
            topp=args.sampling_topp if args.sampling_topp > 0 else None,
        )
        return cls(
            models,
            languages,
            dictionaries,
            Wording(dictionaries[1], args.remove_bpe, lexicon),
            settings,
            computing,
            args.max_len_a,
            args.max_len_b,
            prefix_size,
            need_alignment or lexicon is not None,
            torch.Generator(computing.device).manual_seed(args.seed),
        )

    @property
    def max_positions(self) -> tuple[int, int]:
        """The longest source and target that all models can take, ends counted."""
        configs = [model.config for model in self.models]
        return min(c.max_source_length for c in configs), min(c.max_target_length for c in configs)

    @property
    def masks_padding(self) -> bool:
        """Whether no model attends to padding, so that sources of different lengths can be in one batch."""
        return all(model.config.cross_mask for model in self.models)

    def translate(self, batch: Batch) -> list[list[Hypothesis]]:
        """Return the hypotheses for each sentence of the batch, best first; for one without words an empty one.

        Raises:
            RunError: if the models' outputs are not numbers.
        """
        lengths = batch.source.ne(Dictionary.pad).sum(1).tolist()
        full = sum(length > 1 for length in lengths)  # the others, which only have an end, are the last of a batch
        nothing = [[Hypothesis([Dictionary.eos], 0.0, [0.0], [])]] * (len(lengths) - full)
        if not full:
            return nothing
        longest = self.max_positions[1] - 1
        limit = torch.tensor([min(int(self.max_len_a * length + self.max_len_b), longest) for length in lengths[:full]])
        found = self._timed(
            beam_search,
            self.models,
            batch.source[:full],
            limit.to(batch.source.device),
            self.settings,
            prefix=batch.target[:full, : self.prefix_size] if self.prefix_size else None,
            need_alignment=self.need_alignment,
            generator=self.generator,
        )
        if not all(found):
            raise RunError("no translation has a probability: the model's outputs are not numbers (nan)")
        return found + nothing

    def score_references(self, batch: Batch) -> list[list[Hypothesis]]:
        """Return the reference of each sentence as its only hypothesis; the score is the mean log-probability."""
        return self._timed(self._score_references, batch)

    @torch.inference_mode()
    def _score_references(self, batch: Batch) -> list[list[Hypothesis]]:
        keep = batch.target.ne(Dictionary.pad)
        logits = [model(batch.source, batch.decoder_input, keep) for model in self.models]
        words = batch.target[keep]
        log_probs = average([each.log_softmax(-1) for each in logits]).gather(1, words[:, None])[:, 0]
        sizes = keep.sum(1).tolist()
        rows = zip(words.split(sizes), log_probs.split(sizes))
        return [[Hypothesis(each.tolist(), scores.mean().item(), scores.tolist())] for each, scores in rows]

    def _timed(self, call, *args, **options):
        start = time.perf_counter()
        with self.computing.autocast():
            result = call(*args, **options)  # lists, so a GPU has finished
        self.seconds += time.perf_counter() - start
        return result
