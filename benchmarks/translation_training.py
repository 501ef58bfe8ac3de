"""Training step of `transformer_small` (forward, backward, decay, clipping, NAG) in target words a second.

Timed beside it: the same step written down straightforwardly with `nn.Transformer`, scores for padding included,
`F.cross_entropy`, `clip_grad_norm_` and SGD with Nesterov momentum. Candidates take turns on the same batches, whose
collation is not timed; all profit from `lab.devices.keep_freed_memory`. `0.5` is factorized, with Frobenius decay of
everything.

Targets, in words a second on two cores with AVX-512 and bf16, where a general toolkit makes 4,380: 5,500 in fp32, 8,800
with bf16 and compiled. Rank scales and decay have a benchmark of their own, `translation_step.py`.

    python benchmarks/translation_training.py DATA_BIN [--settings fp32 bf16 compiled-fp32 compiled-bf16] [--cpu-time]

DATA_BIN is a folder that preprocess.py wrote (data/prepare-multi30k.sh --words, vocabularies of 5,384 and 4,568).
`--cpu-time` measures one thread's CPU time, which other programs on the machine disturb less.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import begin, device, medians
from torch import Tensor, nn

from lab.devices import Computing, keep_freed_memory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "Transformer-PyTorch"))
import train as program  # noqa: E402  (an experiment's folder is not a package)
from fairseq import optimization, schedule  # noqa: E402
from fairseq.batches import Batch, collate, training_batches  # noqa: E402
from fairseq.feed import load_data  # noqa: E402
from fairseq.trainer import Trainer  # noqa: E402
from fairseq.transformer import build_model  # noqa: E402

PAD = 1
ROUND, REPEATS = 2, 7
FLAGS = "--arch transformer_small --clip-norm 0.1 --dropout 0.2 --criterion label_smoothed_cross_entropy "
FLAGS += "--label-smoothing 0.1 --lr-scheduler inverse_sqrt --weight-decay 1e-4 "
FACTORIZED = "--rank-scale 0.5 --spectral --wd2fd --wd2fd-quekey --wd2fd-outval"
SETTINGS = {
    "fp32": {},
    "bf16": {"amp": torch.bfloat16},
    "compiled-fp32": {"compile": True},
    "compiled-bf16": {"amp": torch.bfloat16, "compile": True},
}


class Straightforward(nn.Module):
    """The same size of model from PyTorch's own layers."""

    def __init__(self, source_size: int, target_size: int, width: int = 256, dropout: float = 0.2):
        super().__init__()
        self.source, self.target = nn.Embedding(source_size, width, PAD), nn.Embedding(target_size, width, PAD)
        self.positions = nn.ModuleList(nn.Embedding(1024, width) for _ in range(2))
        self.layers = nn.Transformer(width, 4, 2, 2, 1024, dropout, batch_first=True, norm_first=True)
        self.output, self.dropout = nn.Linear(width, target_size), nn.Dropout(dropout)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return scores (B, T, target vocabulary)."""
        embedded = (
            self.dropout(table(tokens) + positions(torch.arange(tokens.shape[1], device=tokens.device)))
            for table, positions, tokens in zip((self.source, self.target), self.positions, (source, target))
        )
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        padding = torch.zeros(source.shape, device=source.device).masked_fill(source.eq(PAD), -torch.inf)
        return self.output(
            self.layers(
                *embedded, tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding,
                tgt_is_causal=True,
            )
        )  # fmt: skip


def straightforward(sizes: tuple[int, int], amp: torch.dtype | None = None, compile: bool = False):
    """Return its training step."""
    model = Straightforward(*sizes).to(device())
    network = torch.compile(model, dynamic=True) if compile else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.99, nesterov=True)

    def step(batch: Batch) -> None:
        batch = batch.to(device())
        with torch.autocast(device().type, amp or torch.bfloat16, enabled=amp is not None):
            scores = network(batch.source, batch.decoder_input).flatten(0, 1)
            gold = batch.target.flatten()
            loss = F.cross_entropy(scores, gold, ignore_index=PAD, label_smoothing=0.1, reduction="sum")
        optimizer.zero_grad()
        (loss / batch.ntokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return step


def ours(flags: str, sizes: tuple[int, int], amp: torch.dtype | None = None, compile: bool = False) -> Trainer:
    """Return a trainer with a new model."""
    args = program.build_parser().parse_args(["-", *FLAGS.split(), *flags.split()])
    model = build_model(program.model_config(args), *sizes).to(device())
    computing = Computing(device(), amp, compile, torch.contiguous_format)
    options = {"smoothing": args.label_smoothing, "clip_norm": args.clip_norm}
    return Trainer(model, optimization.build(args, model), schedule.build(args), computing, **options)


def rounds(step: Callable[[Batch], None], batches: list[Batch]) -> Callable[[], None]:
    """Return a function that steps through all batches."""

    def run() -> None:
        for batch in batches:
            step(batch)

    return run


def step_of(trainer: Trainer) -> Callable[[Batch], None]:
    """Return a trainer's step on one batch."""

    def step(batch: Batch) -> None:
        trainer.step([batch], tokens=batch.ntokens, sentences=len(batch), samples=batch.ntokens)

    return step


def main(argv: list[str] | None = None) -> None:
    """Print words a second and a ratio for every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["fp32", "compiled-bf16"])
    parser.add_argument("--max-tokens", type=int, default=4000)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args(argv)
    clock = begin(args.cpu_time)
    keep_freed_memory()
    flags = program.build_parser().parse_args([str(args.data), *FLAGS.split()])
    data = load_data(flags)
    sizes = tuple(map(len, data.dictionaries))
    chosen = training_batches(data.train, seed=2, max_tokens=args.max_tokens)[:ROUND]
    batches = [collate(data.train, ids) for ids in chosen]
    words = sum(batch.ntokens for batch in batches)
    print(f"vocabularies {sizes}; {ROUND} batches of {words / ROUND:.0f} target words; median of {REPEATS} rounds")
    for setting in args.settings:
        torch._dynamo.reset()
        options = SETTINGS[setting]
        steps = {"straightforward": straightforward(sizes, **options)}
        steps |= {"dense": step_of(ours("", sizes, **options)), "0.5": step_of(ours(FACTORIZED, sizes, **options))}
        seconds = medians({name: rounds(step, batches) for name, step in steps.items()}, REPEATS, clock=clock)
        rates = "  ".join(f"{name} {words / seconds[name]:.0f}" for name in steps)
        ratio = seconds["straightforward"] / seconds["dense"]
        print(f"{setting}: words/s: {rates}; dense against straightforward {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
