"""Sentences per second of beam search, beside a beam search written in the straightforward way.

    python benchmarks/translation_generation.py [--threads N] [--bf16] [DATA CHECKPOINT]

Beam 5, batches of 128. By default `transformer_small` as it is initialized, with the vocabularies of Multi30k (5,384
and 4,568 words), on sentences of 13 words, translated by exactly 10 words and the end: then only the work counts, not
where translations end. With the two arguments: the test split of a data folder by a trained model.

The straightforward search keeps keys and values of source and target for each hypothesis, copies all of them whenever
hypotheses change places, looks for the best words in whole rows of the vocabulary, goes through sentences and
candidates in Python, and works on all sentences of a batch until the last is done.

Target: 500 sentences/s on two threads of a machine where a general toolkit does 246. The matrix products of the
decoder, which no search can do without, are timed alone as well. Times are those of the clock, but with --threads 1 of
the processor, which depend less on what else a machine does.

With --bf16: half precision with matrices that are converted once, as generate.py has them, and at every use, instead.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import describe, device, medians

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "Transformer-PyTorch"))

from fairseq.batches import collate, evaluation_batches  # noqa: E402
from fairseq.checkpoint import load_model  # noqa: E402
from fairseq.config import architecture  # noqa: E402
from fairseq.corpus import find_languages, load_dictionaries, load_split  # noqa: E402
from fairseq.generation import shorten  # noqa: E402
from fairseq.search import EOS, PAD, SearchSettings, beam_search  # noqa: E402
from fairseq.transformer import Transformer, build_model  # noqa: E402

BEAM, BATCH, WORDS, SOURCE = 5, 128, 10, 13
VOCABULARIES = 5384, 4568
TARGET = 500


def straightforward(model: Transformer, source: torch.Tensor, limit: int) -> list[list[tuple[list[int], float]]]:
    """Return the hypotheses (words, score) for each sentence, best first."""
    decoder, sentences = model.decoder, len(source)
    encoded = model.encode(source)
    memory = encoded.states.repeat_interleave(BEAM, 0)
    mask = ~encoded.padding.repeat_interleave(BEAM, 0)[:, None, None]
    across = [layer.cross_attention.keys_values(memory) for layer in decoder.layers]
    before = [None] * len(decoder.layers)
    words = torch.full((sentences * BEAM, 1), EOS, device=source.device)
    totals = torch.zeros(sentences, BEAM, 1, device=source.device)
    finished = [[] for _ in range(sentences)]
    for t in range(limit + 1):
        x = decoder.embedder.at(words[:, -1:], t)
        for number, layer in enumerate(decoder.layers):
            normed = layer.self_attention_norm(x)
            keys_values = layer.self_attention.keys_values(normed)
            if t:
                keys_values = tuple(torch.cat(pair, 2) for pair in zip(before[number], keys_values))
            before[number] = keys_values
            x = x + layer.self_attention(normed, keys_values)
            x = x + layer.cross_attention(layer.cross_attention_norm(x), across[number], mask=mask)
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
        scores = decoder.logits(x[:, 0]).log_softmax(-1).view(sentences, BEAM, -1) + totals
        scores[:, :, PAD] = -inf
        if t == 0:
            scores[:, 1:] = -inf
            scores[:, :, EOS] = -inf
        if t == limit:
            ends = scores[:, :, EOS].clone()
            scores.fill_(-inf)[:, :, EOS] = ends
        size = scores.shape[-1]
        best, places = scores.view(sentences, -1).topk(2 * BEAM)
        rows, chosen, kept = [], [], []
        for sentence, (values, candidates) in enumerate(zip(best.tolist(), places.tolist())):
            going_on = 0
            for rank, (value, place) in enumerate(zip(values, candidates)):
                row, word = sentence * BEAM + place // size, place % size
                if word == EOS:
                    if rank < BEAM and len(finished[sentence]) < BEAM and value > -inf:
                        finished[sentence].append(([*words[row, 1:].tolist(), EOS], value / (t + 1)))
                elif going_on < BEAM:
                    going_on += 1
                    rows.append(row)
                    chosen.append(word)
                    kept.append(value)
        if t == limit or all(len(each) >= BEAM for each in finished):
            break
        rows = torch.tensor(rows, device=source.device)
        words = torch.cat([words[rows], torch.tensor(chosen, device=source.device)[:, None]], 1)
        totals = torch.tensor(kept, device=source.device).view(sentences, BEAM, 1)
        before = [(keys[rows], values[rows]) for keys, values in before]
        across = [(keys[rows], values[rows]) for keys, values in across]
    return [sorted(each, key=lambda item: -item[1]) for each in finished]


def products(model: Transformer, sentences: int, steps: int) -> None:
    """Do the matrix products of the decoder: a first step for each sentence, the others for each hypothesis."""
    for step in range(steps):
        x = torch.ones(sentences * (BEAM if step else 1), model.config.hidden_size, device=device())
        for layer in model.decoder.layers:
            for attention in (layer.self_attention, layer.cross_attention):
                F.linear(F.linear(x, attention.query_key.query), attention.output_value.output)
            attention = layer.self_attention
            F.linear(x, torch.cat([attention.query_key.key, attention.output_value.value]))
            layer.feed_forward(x)
        model.decoder.output(x)


def synthetic() -> tuple[Transformer, list[torch.Tensor], int]:
    """Return an untrained model that never ends by itself, batches, and the words of a translation."""
    torch.manual_seed(0)
    model = build_model(architecture("transformer_small"), *VOCABULARIES).to(device()).eval()
    model.decoder.output.bias.data[EOS] = -1e4
    batches = torch.randint(4, VOCABULARIES[0], (2, BATCH, SOURCE + 1))
    batches[:, :, -1] = EOS
    return model, list(batches.to(device())), WORDS


def real(folder: str, checkpoint: str) -> tuple[Transformer, list[torch.Tensor], int]:
    """Return a trained model, the batches of the test split, and the most words of a translation."""
    languages = find_languages(folder)
    dictionaries = load_dictionaries(folder, *languages)
    corpus = load_split(folder, "test", *languages, dictionaries)
    model = load_model(checkpoint, languages, dictionaries, device())
    batches = evaluation_batches(corpus, max_tokens=6000, max_sentences=BATCH, one_length=False)
    return model, [collate(corpus, ids).source.to(device()) for ids in batches], 200


def compare_precisions(model: Transformer, search_all: Callable[[Transformer], list], args: argparse.Namespace) -> None:
    """Print the times of full precision, and of half precision in both ways, divided by the first."""
    short = copy.deepcopy(model)
    shorten(short, torch.bfloat16)
    found = {}

    def half(name: str, model: Transformer) -> None:
        with torch.autocast(device().type, torch.bfloat16):
            found[name] = search_all(model)

    candidates = {
        "fp32": lambda: search_all(model),
        "bf16, converted at every use": lambda: half("every", model),
        "bf16, converted once": lambda: half("once", short),
    }
    seconds = medians(candidates, args.repeats, 1, time.process_time if args.threads == 1 else time.perf_counter)
    for name, value in seconds.items():
        print(f"{name}: {value:.3f} s, {value / seconds['fp32']:.2f} of fp32")
    print("the two bf16 find the same" if found["every"] == found["once"] else "the two bf16 find different hypotheses")


@torch.inference_mode()
def main() -> None:
    """Print sentences per second of both searches and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", metavar="DATA CHECKPOINT")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    print(describe())
    torch.set_num_threads(args.threads)
    model, batches, limit = real(*args.files) if args.files else synthetic()
    limits = [torch.full((len(batch),), limit, device=batch.device) for batch in batches]
    settings = SearchSettings(beam=BEAM)
    found: dict[str, list] = {}

    def search_all(model: Transformer) -> list:
        results = (beam_search([model], batch, limit, settings) for batch, limit in zip(batches, limits))
        return [hypotheses for result in results for hypotheses in result]

    def ours() -> None:
        found["ours"] = search_all(model)

    def plain() -> None:
        found["straightforward"] = [each for batch in batches for each in straightforward(model, batch, limit)]

    if args.bf16:
        compare_precisions(model, search_all, args)
        return
    candidates = {"ours": ours, "straightforward": plain}
    if not args.files:
        candidates["products"] = lambda: [products(model, len(batch), limit + 1) for batch in batches]
    clock = time.process_time if args.threads == 1 else time.perf_counter
    seconds = medians(candidates, args.repeats, 1, clock)
    sentences = sum(map(len, batches))
    same = sum(ours[0].words == plain[0][0] for ours, plain in zip(found["ours"], found["straightforward"]))
    words = sum(len(each[0].words) for each in found["ours"]) / sentences
    rates = {name: sentences / value for name, value in seconds.items()}
    alone = f"; the products alone {rates['products']:.0f}" if "products" in rates else ""
    print(
        f"{sentences} sentences in {len(batches)} batches, {args.threads} threads, translations of {words:.1f} tokens, "
        f"{same} the same in both\n"
        f"sentences/s: {rates['ours']:.0f} (target >= {TARGET}), straightforward {rates['straightforward']:.0f}; "
        f"ratio {rates['ours'] / rates['straightforward']:.2f}{alone}"
    )


if __name__ == "__main__":
    main()
