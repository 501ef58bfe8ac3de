"""Beam search and sampling, for a batch of sentences at once.

In the shapes below b is the number of sentences still being searched, k the beam and V the size of the target
dictionary.

A model is any object with `encode(source) -> memory`, `start_decoding(memory) -> state`, one row for each sentence, and
`decode_step(words (rows,), state, need_attention) -> (logits (rows, V), attention (rows, S) or None)`. The state has
`select(rows)`: go on with the rows (b, k), k for each sentence, which were rows of one sentence before, too.
"""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from .candidates import EOS, PAD, best, constrain, continuing, draw
from .hypotheses import Ended, Growing, Hypothesis
from .search_settings import SearchSettings


class _Ensemble:
    """Models that step together: their probabilities, after logits are divided by `temperature`, are averaged."""

    def __init__(self, models: Sequence, source: Tensor, need_attention: bool, temperature: float):
        self.models, self.need_attention, self.temperature = models, need_attention, temperature
        self.states = [model.start_decoding(model.encode(source)) for model in models]

    def step(self, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities of the words after `words` (b, k), (b, k, V), and the attention (b, k, S)."""
        steps = [
            model.decode_step(words.flatten(), state, need_attention=self.need_attention)
            for model, state in zip(self.models, self.states)
        ]
        log_probs = average([self._tempered(logits).log_softmax(-1) for logits, _ in steps])
        attention = sum(weights for _, weights in steps).view(*words.shape, -1) if self.need_attention else None
        return log_probs.view(*words.shape, -1), attention

    def _tempered(self, logits: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.temperature == 1 else logits / self.temperature

    def select(self, rows: Tensor) -> None:
        """Go on with the hypotheses in these rows, (b, k)."""
        for state in self.states:
            state.select(rows)


def average(log_probs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities."""
    return log_probs[0] if len(log_probs) == 1 else torch.stack(log_probs).logsumexp(0) - log(len(log_probs))


@torch.inference_mode()
def beam_search(
    models: Sequence,
    source: Tensor,
    limit: Tensor,
    settings: SearchSettings,
    *,
    prefix: Tensor | None = None,
    need_alignment: bool = False,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Translate a batch of sentences. Returns up to `beam` hypotheses for each, best first, at least one.

    A sentence is taken out of the batch when it is done.

    Args:
        models: one, or several to average.
        source: (B, S), as the models' `encode` takes it.
        limit: (B,) most words of a translation, without EOS. All that then have not ended are ended.
        prefix: (B, P) words that the translations must start with, PAD where anything may follow.
        need_alignment: whether the hypotheses should have an `alignment`.
        generator: for sampling.
    """
    if prefix is not None:  # where it ends too early, anything may follow
        early = torch.arange(prefix.shape[1], device=prefix.device) < settings.min_len
        prefix = prefix.masked_fill((prefix == EOS) & early, PAD)
    decoders = _Ensemble(models, source, need_alignment, settings.temperature)
    padding = source.eq(PAD).sum(1)
    growing = Growing.start(limit, need_alignment)
    ended = Ended(limit, settings)
    longest = int(limit.max())
    for t in range(longest + 1):
        log_probs, attention = decoders.step(growing.words[:, :, -1])
        constrain(log_probs, growing, t, settings, prefix)
        if attention is not None:
            most = attention.argmax(-1) - padding[growing.sentence, None]
            growing.aligned = torch.cat([growing.aligned, most[:, :, None]], -1)
        if settings.sampling:
            candidates = draw(log_probs, growing, settings, generator)
        else:
            candidates = best(log_probs, growing, settings.beam)
        ended.add(candidates, growing)
        chosen = continuing(candidates, settings.beam)
        keep = (~ended.is_done(growing, chosen.totals)).nonzero().flatten()
        if t == longest or not len(keep):
            break
        decoders.select(keep[:, None] * growing.words.shape[1] + chosen.parents[keep])
        growing = growing.extended(chosen, keep)
    return ended.hypotheses()
