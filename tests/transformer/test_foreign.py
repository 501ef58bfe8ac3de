"""Command lines of fairseq: what trains as it stands, and what is explained."""

import pytest
import torch
import train as program
from fairseq.foreign_training import TRAIN
from fairseq.training_flags import build_parser

from tests.harness import one_line, results
from tests.transformer import tiny

# What fairseq's users type for this data set, with the sizes of a tiny model added.
COMMAND = [
    *("--arch transformer_iwslt_de_en --share-decoder-input-output-embed --optimizer adam".split()),
    *("--adam-betas", "(0.9, 0.98)", "--clip-norm", "0.0"),
    *("--lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 --dropout 0.3 --weight-decay 0.0001".split()),
    *("--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 4096 --eval-bleu".split()),
    *("--eval-bleu-args", '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}', "--eval-bleu-detok", "moses"),
    *("--eval-bleu-remove-bpe --eval-bleu-print-samples --best-checkpoint-metric bleu".split()),
    *("--maximize-best-checkpoint-metric --task translation --num-workers 4 --ddp-backend legacy_ddp --fp16".split()),
    *("--fp16-init-scale 4 --encoder-normalize-before --keep-last-epochs 3 --patience 5".split()),
]


def test_a_command_of_fairseq(data, tmp_path, recwarn):
    sizes = "--hidden-size 16 --filter-size 32 --num-layers 1 --max-epoch 1 --device cpu"
    program.main([str(data), *COMMAND, *sizes.split(), "--save-dir", str(tmp_path / "run")])
    assert "--fp16 needs a GPU: running with --amp bf16" in [str(warning.message) for warning in recwarn]
    assert results(tmp_path / "run")["best validation BLEU"] >= 0
    config = tiny.checkpoint(tmp_path / "run")["config"]
    assert (config["num_heads"], config["dropout"], config["share_input_output_embed"]) == (4, 0.3, True)


def parse(*flags):
    return build_parser().parse_args(["data", "--arch", "transformer", *flags])


@pytest.mark.parametrize("flag", sorted(TRAIN.hints))
@pytest.mark.parametrize("values", [(), ("8",), ("8", "9")])
def test_what_there_is_not_is_explained(flag, values, capsys):
    error = one_line(lambda: parse(flag, *values), "train.py", capsys)
    assert f"{flag} is a flag of fairseq: {TRAIN.hints[flag]}" in error


def test_what_changes_nothing_is_accepted():
    flags = [part for flag in TRAIN.values for part in (flag, "8")] + TRAIN.switches
    assert parse(*flags) == parse()
    for flag, note in TRAIN.notes.items():
        with pytest.warns(UserWarning, match=f"{flag} has no effect: {note}"):
            assert parse(flag, "8") == parse()


@pytest.mark.parametrize(
    ("flags", "amp"), [("--fp16", "fp16"), ("--bf16", "bf16"), ("--memory-efficient-fp16", "fp16")]
)
def test_switches_of_precision(monkeypatch, flags, amp):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = parse(*flags.split())
    assert args.amp == amp
