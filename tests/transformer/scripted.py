"""Models whose probabilities are known, as `fairseq.search` takes them, and the search once more for one sentence.

The words are numbered as in a dictionary: 0 placeholder, 1 padding, 2 end of sentence, 3 unknown, 4 and up words.
"""

from math import inf, log

import torch
from torch import Tensor

PAD, EOS, UNK = 1, 2, 3
A, B = 4, 5

# Next-word probabilities after the start, a and b.
BIGRAMS = {EOS: {EOS: 0.1, A: 0.6, B: 0.3}, A: {EOS: 0.3, A: 0.2, B: 0.5}, B: {EOS: 0.45, A: 0.4, B: 0.15}}


class Rows:
    """A decoding state: for each hypothesis its source and the words so far."""

    def __init__(self, source: list[tuple[int, ...]]):
        self.source, self.words = source, [() for _ in source]

    def select(self, rows: Tensor) -> None:
        """Go on with the rows (sentences, hypotheses)."""
        rows = rows.flatten()
        self.source = [self.source[row] for row in rows.tolist()]
        self.words = [self.words[row] for row in rows.tolist()]


class Scripted:
    """A model whose next-word logits are `logits(source, words)`; `rows` collects how many it was asked for each step.

    The attention is on the source position that is the sum of the words so far, modulo the length.
    """

    def __init__(self, logits):
        self.logits, self.rows = logits, []

    def encode(self, source: Tensor) -> list[tuple[int, ...]]:
        return [tuple(row) for row in source.tolist()]

    def start_decoding(self, memory: list[tuple[int, ...]]) -> Rows:
        return Rows(memory)

    def decode_step(self, words: Tensor, state: Rows, need_attention: bool = False) -> tuple[Tensor, Tensor | None]:
        assert len(words) == len(state.words)
        self.rows.append(len(words))
        state.words = [(*before, word) for before, word in zip(state.words, words.tolist())]
        logits = torch.stack([self.logits(source, before) for source, before in zip(state.source, state.words)])
        if not need_attention:
            return logits, None
        length = len(state.source[0])
        attention = torch.full((len(words), length), 0.1)
        for row, before in enumerate(state.words):
            attention[row, sum(before) % length] = 0.9
        return logits, attention


def bigram(source, words) -> Tensor:
    """Return the logits of the table above, whatever the source; what follows other words has no probability anyway."""
    table = BIGRAMS.get(words[-1], BIGRAMS[EOS])
    return torch.tensor([log(table[word]) if word in table else -inf for word in range(6)], dtype=torch.float64)


def random_logits(size: int, seed: int = 0, scale: float = 2.0):
    """Return a model of `size` words with random logits that depend on the source and all words so far."""
    known: dict = {}

    def logits(source, words) -> Tensor:
        if (source, words) not in known:
            generator = torch.Generator().manual_seed(hash((source, words, seed)) % 2**62)
            known[source, words] = scale * torch.randn(size, generator=generator, dtype=torch.float64)
        return known[source, words]

    return logits


def plain_search(
    logits,
    source,
    limit,
    beam,
    *,
    early_stop=True,
    normalize=True,
    lenpen=1.0,
    unkpen=0.0,
    min_len=1,
    temperature=1.0,
    prefix=(),
):
    """Return [(words, score)] of one sentence, best first: the definition, hypothesis by hypothesis."""
    active, finished = [((EOS,), 0.0)], []

    def finish(words, total):
        score = total / len(words) ** lenpen if normalize else total
        if early_stop:
            if len(finished) < beam:
                finished.append((words, score))
        else:
            finished.append((words, score))
            finished.sort(key=lambda item: -item[1])
            del finished[beam:]

    for t in range(limit + 1):
        candidates = []
        for words, total in active:
            log_probs = (logits(source, words) / temperature).log_softmax(-1).tolist()
            log_probs[UNK] -= unkpen
            for word, log_prob in enumerate(log_probs):
                if word != PAD and log_prob > -inf:
                    candidates.append((words + (word,), total + log_prob))
        candidates.sort(key=lambda item: -item[1])
        if t == limit:
            for words, total in candidates:
                if words[-1] == EOS:
                    finish(words[1:], total)
            break
        if t < len(prefix):
            candidates = [item for item in candidates if item[0][-1] == prefix[t]]
        if t < min_len:
            candidates = [item for item in candidates if item[0][-1] != EOS]
        for words, total in candidates[:beam]:
            if words[-1] == EOS:
                finish(words[1:], total)
        active = [item for item in candidates[: 2 * beam] if item[0][-1] != EOS][:beam]
        if not active or (early_stop and len(finished) >= beam):
            break
        if not early_stop and len(finished) >= beam:
            best = active[0][1] / ((limit + 1) ** lenpen if normalize else 1)
            if finished[-1][1] >= best:
                break
    return sorted(finished, key=lambda item: -item[1])
