"""The model's part of a translation training step, on random sentences with the lengths of Multi30k; no data needed.

Prints, for `transformer_small` with vocabularies of 5,384 and 4,568 and batches of 4,000 tokens, dropout 0.2:

- forward and backward pass at rank scales 0.5 and 0.25 against dense (target: at most 0.8 at 0.25);
- Frobenius decay of all factorized modules as a share of that (target: at most 1 %), and autograd of the penalty;
- what the dense pass takes with one part of the model done the plain way;
- the same passes in bf16, with attention in plain operations as we train it on a CPU and with PyTorch's own.

    python benchmarks/translation_step.py [--cpu-time]

`benchmarks/translation_training.py` times whole updates on real data. `--cpu-time` measures the CPU time of one thread,
which other programs on the machine disturb less.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from timing import begin, device, medians
from torch import Tensor, nn

from factorized import FrobeniusDecay, factorized_modules
from factorized.layers import attention
from lab.devices import keep_freed_memory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "Transformer-PyTorch"))
from fairseq.batches import Batch, collate, training_batches  # noqa: E402  (an experiment's folder is not a package)
from fairseq.config import architecture  # noqa: E402
from fairseq.corpus import Corpus  # noqa: E402
from fairseq.criterion import label_smoothed_cross_entropy  # noqa: E402
from fairseq.dictionary import Dictionary  # noqa: E402
from fairseq.dropout import Dropout  # noqa: E402
from fairseq.layer_norm import LayerNorm  # noqa: E402
from fairseq.transformer import Transformer, build_model  # noqa: E402

PAD, EOS = 1, 2
SIZES = 5_384, 4_568
# Mean and standard deviation of German lengths in words, end included; English is a line through them plus noise.
SOURCE_LENGTH, SLOPE, MEAN_DIFFERENCE, NOISE = (13.6, 4.26), 0.83, 0.52, 2.06
ROUND, REPEATS = 2, 5
COEFFICIENT = 1e-4
SPECTRAL = {"spectral": True, "spectral_quekey": True, "spectral_outval": True}


def random_batches(max_tokens: int = 4000, sentences: int = 29_000) -> list[Batch]:
    """Return ROUND batches, as an epoch of training would make them."""
    random = numpy.random.RandomState(0)
    mean, deviation = SOURCE_LENGTH
    source = random.normal(mean, deviation, sentences).round().clip(3, 46)
    target = (mean + MEAN_DIFFERENCE + SLOPE * (source - mean) + random.normal(0, NOISE, sentences)).round().clip(3, 46)

    def side(lengths: numpy.ndarray, size: int) -> list[list[int]]:
        return [[*random.randint(4, size, int(length) - 1), EOS] for length in lengths]

    corpus = Corpus(side(source, SIZES[0]), side(target, SIZES[1]), Dictionary(), Dictionary())
    return [collate(corpus, ids) for ids in training_batches(corpus, seed=1, max_tokens=max_tokens)[:ROUND]]


def network(rank_scale: float = 0.0) -> Transformer:
    """Return `transformer_small` in training mode."""
    options = SPECTRAL if rank_scale else {}
    config = architecture("transformer_small", dropout=0.2, rank_scale=rank_scale, **options)
    return build_model(config, *SIZES).to(device()).train()


def passes(
    model: Transformer, batches: list[Batch], packed: bool = True, short: bool = False, fused: bool = False
) -> Callable[[], None]:
    """Return a function that adds up the gradients of all batches.

    Args:
        short: under bf16 autocast.
        fused: with PyTorch's attention in any case.
    """

    def run() -> None:
        model.zero_grad()
        attention._fused_is_slow = (lambda: False) if fused else ours
        for batch in batches:
            real = batch.target.ne(PAD)
            rows = real.flatten().nonzero().squeeze(1)
            with torch.autocast(device().type, torch.bfloat16, enabled=short):
                if packed:
                    logits = model(batch.source, batch.decoder_input, rows)
                else:
                    logits = model(batch.source, batch.decoder_input).flatten(0, 1).index_select(0, rows)
            loss, _ = label_smoothed_cross_entropy(logits, batch.target[real], 0.1)
            (loss / batch.ntokens).backward()

    ours = attention._fused_is_slow
    return run


def replaced(kind: type[nn.Module], plain: Callable[[nn.Module], nn.Module]) -> Transformer:
    """Return a dense model whose modules of one kind are replaced by `plain(module)`."""
    model = network()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, plain(child))
    return model


class PlainLayerNorm(LayerNorm):
    """The formula, left to automatic differentiation."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., size)."""
        return self.gamma * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.beta


def penalty(model: Transformer) -> None:
    """Frobenius decay by automatic differentiation of the products' squared norms."""
    products = (U @ VT for U, VT in (module.factors() for module in factorized_modules(model).values()))
    (COEFFICIENT / 2 * sum(product.square().sum() for product in products)).backward()


def main(argv: list[str] | None = None) -> None:
    """Print seconds, ratios and shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args(argv)
    clock = begin(args.cpu_time)
    keep_freed_memory()
    batches = [batch.to(device()) for batch in random_batches()]
    words = sum(batch.ntokens for batch in batches)
    print(f"{ROUND} batches of {words / ROUND:.0f} target words; median of {REPEATS} rounds")

    models = {"dense": network(), "0.5": network(0.5), "0.25": network(0.25)}
    seconds = medians({name: passes(model, batches) for name, model in models.items()}, REPEATS, clock=clock)
    for name, model in models.items():
        decay = FrobeniusDecay(model, COEFFICIENT)
        candidates = {"ours": decay.add_gradients, "autograd": lambda model=model: penalty(model)}
        decays = medians(candidates, 5 * REPEATS, clock=clock)
        share, plain = (100 * decays[way] * ROUND / seconds[name] for way in candidates)
        print(
            f"{name}: {words / seconds[name]:.0f} words/s, {seconds[name] / seconds['dense']:.2f} of dense; "
            f"decay of all forms {share:.2f} % (autograd {plain:.2f} %)",
            flush=True,
        )

    plain = {
        "ours": passes(models["dense"], batches),
        "nn.Dropout": passes(replaced(Dropout, lambda module: nn.Dropout(module.p)), batches),
        "layer norm by its formula": passes(replaced(LayerNorm, lambda module: PlainLayerNorm(256)), batches),
        "padding computed": passes(network(), batches, packed=False),
    }
    seconds = medians(plain, REPEATS, clock=clock)
    for name in list(plain)[1:]:
        print(f"dense with {name}: {seconds[name] / seconds['ours']:.2f} times as long", flush=True)

    candidates = {"float32": passes(models["dense"], batches)}
    for name, model in models.items():
        candidates[name] = passes(model, batches, short=True)
        candidates[f"{name}, fused"] = passes(model, batches, short=True, fused=True)
    seconds = medians(candidates, REPEATS, clock=clock)
    for name in models:
        ours, fused = (seconds["float32"] / seconds[key] for key in (name, f"{name}, fused"))
        print(f"bf16, {name}: {ours:.2f} times as fast as dense float32; with PyTorch's attention {fused:.2f} times")


if __name__ == "__main__":
    main()
