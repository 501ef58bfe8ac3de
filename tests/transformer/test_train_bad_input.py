"""A mistake of the user's is one line that says what is wrong and what would be right; nothing on disk is changed."""

import argparse
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import average_checkpoints
import pytest
import torch
import train as program

from tests.harness import REPOSITORY, assert_mistake, environment
from tests.transformer import tiny

# What is typed, and what the message must contain: what is wrong, and what would be right.
TRAIN = {
    "no architecture": ("data-bin", "required", "--arch"),
    "unknown architecture": ("data-bin --arch transformer_huge", "transformer_huge", "transformer_base"),
    "architecture of another family": ("data-bin --arch fconv_iwslt_de_en", "Transformers only", "transformer_small"),
    "no such data": ("nowhere --arch transformer", "no such folder: nowhere"),
    "folder without data": ("empty --arch transformer", "empty"),
    "missing dictionary": ("no-dictionary --arch transformer", "dict.de.txt"),
    "unknown language": ("data-bin --arch transformer -s fr -t en", "fr"),
    "no such split": ("data-bin --arch transformer --valid-subset dev", "dev"),
    "truncated data": ("truncated --arch transformer", "train.de-en.de"),
    "training text of another dictionary": ("foreign-dictionary --arch transformer", "foreign-dictionary"),
    "no sentence short enough": ("data-bin --arch transformer --max-source-positions 1", "no pair is left", "90 of 90"),
    "validation sentence too long": ("data-bin --arch transformer --max-target-positions 5", "of 16", "skip-invalid"),
    "heads that do not divide the width": ("data-bin --arch transformer --num-heads 3", "256", "num_heads, 3"),
    "no heads": ("data-bin --arch transformer --num_head 0", "at least 1, not 0"),
    "too much dropout": ("data-bin --arch transformer --dropout 1", "dropout must be at least 0 and below 1"),
    "too large a rank scale": ("data-bin --arch transformer --rank-scale 1.5", "between 0 and 1, not 1.5"),
    "negative rank scale": ("data-bin --arch transformer --rank-scale -0.5", "at least 0, not -0.5"),
    "empty batches": ("data-bin --arch transformer --max-tokens 0", "--max-tokens", "at least 1, not 0"),
    "tokens that are no number": ("data-bin --arch transformer --max-tokens many", "an integer at least 1, not many"),
    "unknown optimizer": ("data-bin --arch transformer --optimizer lion", "lion", "nag"),
    "unknown schedule": ("data-bin --arch transformer --lr-scheduler tri_stage", "tri_stage", "inverse_sqrt"),
    "schedule without an end": ("data-bin --arch transformer --lr-scheduler cosine", "cosine", "give --max-update N"),
    "schedule of nothing but warm-up": (
        "data-bin --arch transformer --lr-scheduler polynomial_decay --max-update 4000",
        "--warmup-updates 4000", "below",
    ),
    "limit on files that are not kept": (
        "data-bin --arch transformer --keep-last-epochs 2 --no-epoch-checkpoints", "give only one",
    ),
    "every zeroth epoch": ("data-bin --arch transformer --save-interval 0", "--save-interval", "at least 1, not 0"),
    "part of a start": (
        "data-bin --arch transformer --restore-file text.pt --reset-meters",
        "--reset-meters alone", "--reset-optimizer",
    ),
    "start from nothing": (
        "data-bin --arch transformer --reset-optimizer", "--reset-optimizer needs", "--finetune-from-model FILE",
    ),
    "start from the run itself": (
        "data-bin --arch transformer --save-dir run --restore-file checkpoint1.pt --reset-optimizer", "use another",
    ),
    "two beginnings": (
        "data-bin --arch transformer --resume text.pt --finetune-from-model text.pt", "give only one",
    ),
    "start from a text": (
        f"data-bin {tiny.MODEL} --finetune-from-model text.pt", "text.pt is not a readable checkpoint",
    ),
    "start from another size": (
        "data-bin --arch transformer --finetune-from-model run/checkpoint1.pt", "another network",
    ),
    "momentum for Adam": (
        f"data-bin {tiny.BASE} --optimizer adam --resume run/checkpoint1.pt",
        "run/checkpoint1.pt is of a run with --optimizer nag, not adam", "--finetune-from-model",
    ),
    "momentum for Adagrad": (
        f"data-bin {tiny.BASE} --optimizer adagrad --resume run/checkpoint1.pt", "--optimizer nag, not adagrad",
    ),
    "state of another schedule": (
        f"data-bin {tiny.BASE} --lr-scheduler fixed --resume run/checkpoint1.pt",
        "--lr-scheduler inverse_sqrt, not fixed",
    ),
    "fewer updates than there were": (
        f"data-bin {tiny.BASE} --max-update 3 --resume run/checkpoint1.pt", "has 5 updates already, --max-update is 3",
    ),
    "as many updates as there were": (
        f"data-bin {tiny.BASE} --max-update 5 --resume run/checkpoint1.pt", "there is nothing left to train",
    ),
    "a shorter run of the folder": (
        f"data-bin {tiny.BASE} --max-update 2 --save-dir run", "has 5 updates already, --max-update is 2",
    ),
    "weights without a run": (f"data-bin {tiny.BASE} --resume bare.pt", "bare.pt has no", "--finetune-from-model"),
    "checkpoint of fairseq": (f"data-bin {tiny.BASE} --resume fairseq.pt", "fairseq.pt is a checkpoint of fairseq"),
    "old checkpoint of fairseq": (
        f"data-bin {tiny.BASE} --finetune-from-model old.pt", "old.pt is a checkpoint of fairseq",
    ),
    "embeddings of two vocabularies": (
        f"odd-data {tiny.MODEL} --share-all-embeddings",
        "--share-all-embeddings needs one dictionary", "--joined-dictionary",
    ),
    "BLEU that nobody computes": (
        "data-bin --arch transformer --best-checkpoint-metric bleu", "--best-checkpoint-metric bleu needs --eval-bleu",
    ),
    "BLEU's settings without BLEU": (
        "data-bin --arch transformer --eval-bleu-remove-bpe", "no effect without --eval-bleu",
    ),
    "the highest loss": (
        "data-bin --arch transformer --maximize-best-checkpoint-metric", "the best loss is the lowest",
    ),
    "settings of BLEU that are no JSON": (
        "data-bin --arch transformer --eval-bleu --eval-bleu-args beam=5", "--eval-bleu-args", "must be JSON", "beam=5",
    ),
    "unknown settings of BLEU": (
        'data-bin --arch transformer --eval-bleu --eval-bleu-args {"width":5}', "has width; it knows beam, lenpen",
    ),
    "half a beam": ('data-bin --arch transformer --eval-bleu --eval-bleu-args {"beam":0.5}', "at least 1, not 0.5"),
    "two precisions": ("data-bin --arch transformer --fp16 --amp bf16", "--fp16 contradicts --amp bf16"),
    "another task": ("data-bin --arch transformer --task language_modeling", "--task", "translation"),
    "unknown criterion": ("data-bin --arch transformer --criterion mse", "mse", "cross_entropy"),
    "smoothing without its criterion": ("data-bin --arch transformer --label-smoothing 0.1", "label_smoothed_cross"),
    "too much smoothing": ("data-bin --arch transformer --label-smoothing 2", "at most 1, not 2"),
    "several rates": ("data-bin --arch transformer --lr 0.2,0.1", "--lr-scheduler fixed, not reduce_lr_on_plateau"),
    "rate of zero": ("data-bin --arch transformer --lr 0", "--lr", "above 0, not 0"),
    "rate below the smallest": ("data-bin --arch transformer --lr 1e-6", "above --min-lr 1e-05"),
    "endless momentum": ("data-bin --arch transformer --momentum 1", "below 1 for nag"),
    "code as betas": ("data-bin --arch transformer --adam-betas __import__('os')", "--adam-betas", "a number"),
    "one beta": ("data-bin --arch transformer --adam-betas 0.9", "two numbers (B1, B2), not 0.9"),
    "negative decay": ("data-bin --arch transformer --frobenius-decay -1", "at least 0, not -1"),
    "several processes": (
        "data-bin --arch transformer --distributed-world-size 4",
        "--distributed-world-size 4", "1 process was started", "torchrun --nproc-per-node 4 train.py",
    ),
    "rendezvous by hand": ("data-bin --arch transformer --distributed-port 9999", "--distributed-port", "torchrun"),
    "absent device": ("data-bin --arch transformer --device 77", "--device 77 is not there", "--device cpu"),
    "two devices": ("data-bin --arch transformer --cpu --device 0", "--cpu contradicts --device 0"),
    "half precision on a CPU": ("data-bin --arch transformer --device cpu --amp fp16", "--amp bf16"),
    "average of nothing": ("data-bin --arch transformer --average-last 3 --no-save", "leave out --no-save"),
    "continue and replace": ("data-bin --arch transformer --resume x.pt --overwrite", "give only one"),
    "no such checkpoint": ("data-bin --arch transformer --restore-file x.pt", "x.pt: no such file"),
    "text as checkpoint": (f"data-bin {tiny.MODEL} --resume text.pt", "text.pt is not a readable checkpoint"),
    "pickled code as checkpoint": (f"data-bin {tiny.MODEL} --resume code.pt", "code.pt is not a readable checkpoint"),
    "tensor as checkpoint": (f"data-bin {tiny.MODEL} --resume tensor.pt", "tensor.pt is not a checkpoint of train.py"),
    "checkpoint of a later version": (f"data-bin {tiny.MODEL} --resume later.pt", "later.pt has format 9"),
    "checkpoint of another size": ("data-bin --arch transformer --resume run/checkpoint1.pt", "another network"),
    "checkpoint with other heads": (
        f"data-bin {tiny.MODEL} --num-heads 4 --resume run/checkpoint1.pt", "a model with num_heads 2, not 4",
    ),
    "start from the other direction": (
        f"data-bin {tiny.MODEL} -s en -t de --finetune-from-model run/checkpoint1.pt",
        "translates de to en, not en to de",
    ),
    "checkpoint of the other direction": (
        f"data-bin {tiny.MODEL} -s en -t de --resume run/checkpoint1.pt", "translates de to en, not en to de",
    ),
    "finished run without its last checkpoint": (
        f"data-bin {tiny.BASE} --save-dir no-last --log-interval 7", "without checkpoint_last.pt", "--overwrite",
    ),
    "a width without deviation": ("data-bin --arch transformer --hidden-size 1 --num-heads 1", "at least 2"),
    "checkpoint of another vocabulary": (
        f"other-data {tiny.MODEL} --resume run/checkpoint1.pt",
        "another source vocabulary (12 symbols of de)", "15 symbols",
    ),
    "folder with another run": (f"data-bin {tiny.BASE} --save-dir run --seed 5", "seed 1, not 5", "another folder"),
    "folder with foreign arguments": (f"data-bin {tiny.BASE} --save-dir foreign", "args.json cannot be read"),
    "folder that is a file": (f"data-bin {tiny.BASE} --save-dir text.pt", "text.pt", "use another folder"),
    "abbreviated flag": ("data-bin --arch transformer --spect", "--spect"),
}  # fmt: skip

AVERAGE = {
    "no inputs": ("--output mean.pt", "--inputs"),
    "no output": ("--inputs run/checkpoint1.pt", "--output"),
    "no such input": ("--inputs run/checkpoint1.pt absent.pt --output mean.pt", "no such file: absent.pt"),
    "text as input": ("--inputs text.pt --output mean.pt", "text.pt is not a readable checkpoint"),
    "truncated input": ("--inputs run/checkpoint1.pt cut.pt --output mean.pt", "cut.pt is not a readable checkpoint"),
    "pickled code as input": ("--inputs code.pt --output mean.pt", "code.pt is not a readable checkpoint"),
    "tensor as input": ("--inputs tensor.pt --output mean.pt", "tensor.pt is not a checkpoint of train.py"),
    "inputs of different shape": ("--inputs run/checkpoint1.pt shape.pt --output mean.pt", "different models"),
    "inputs of different names": ("--inputs run/checkpoint1.pt names.pt --output mean.pt", "different models", "extra"),
    "output into a file": ("--inputs run/checkpoint1.pt --output text.pt/mean.pt", "cannot write text.pt/mean.pt"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with data, a finished run, and files that are wrong in many ways."""
    world = tmp_path_factory.mktemp("world")
    data = tiny.make_data(world)
    (world / "other").mkdir()
    tiny.make_data(world / "other", letters=tiny.LETTERS + "xyz").rename(world / "other-data")
    run = tiny.train(data, world / "run", "--max-epoch 1")
    shutil.copytree(run, world / "no-last")
    (world / "no-last" / "checkpoint_last.pt").unlink()
    (world / "empty").mkdir()
    (world / "foreign").mkdir()
    (world / "foreign" / "args.json").write_text("[0.1]")
    for name in ("no-dictionary", "truncated", "foreign-dictionary"):
        shutil.copytree(data, world / name)
    (world / "no-dictionary" / "dict.de.txt").unlink()
    binary = world / "truncated" / "train.de-en.de.bin"
    binary.write_bytes(binary.read_bytes()[:100])
    (world / "foreign-dictionary" / "dict.de.txt").write_text("a 5\nb 4\n")

    odd = shutil.copytree(data, world / "odd-data")
    (odd / "dict.de.txt").write_text("".join(reversed((data / "dict.de.txt").read_text().splitlines(keepends=True))))

    state = tiny.checkpoint(run)
    (world / "text.pt").write_text("weights")
    (world / "code.pt").write_bytes(pickle.dumps(Path("no tensor")))
    (world / "cut.pt").write_bytes((run / "checkpoint1.pt").read_bytes()[:5000])
    torch.save(torch.ones(3), world / "tensor.pt")
    settings = argparse.Namespace(arch="transformer_iwslt_de_en")
    of_fairseq = {"args": settings, "model": state["state_dict"], "optimizer_history": [{"num_updates": 5}]}
    torch.save(of_fairseq, world / "fairseq.pt")
    torch.save(of_fairseq, world / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({key: value for key, value in state.items() if key != "optimizer"}, world / "bare.pt")
    torch.save({**state, "version": 9}, world / "later.pt")
    weights = state["state_dict"]
    torch.save({**state, "state_dict": {name: value[:1] for name, value in weights.items()}}, world / "shape.pt")
    torch.save({**state, "state_dict": {**weights, "extra": torch.ones(1)}}, world / "names.pt")
    return world


@pytest.mark.parametrize("case", TRAIN)
def test_a_mistake_in_training(world, case, monkeypatch, capfd):
    typed, *expected = TRAIN[case]
    typed = typed if "--save-dir" in typed else f"{typed} --save-dir new"
    warnings = 1 if case == "validation sentence too long" else 0  # of training sentences that are
    monkeypatch.chdir(world)
    assert_mistake(lambda: program.main(typed.split()), "train.py", capfd, expected, world, warnings=warnings)


@pytest.mark.parametrize("case", AVERAGE)
def test_a_mistake_in_averaging(world, case, monkeypatch, capfd):
    typed, *expected = AVERAGE[case]
    monkeypatch.chdir(world)
    main = average_checkpoints.main
    assert_mistake(lambda: main(typed.split()), "average_checkpoints.py", capfd, expected, world)


def test_a_mistake_at_the_real_command_line(world):
    script = REPOSITORY / "Transformer-PyTorch" / "train.py"
    command = [sys.executable, str(script), "data-bin", "--arch", "lstm"]
    done = subprocess.run(command, cwd=world, env=environment("Transformer-PyTorch"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("train.py: error: architecture 'lstm'") and done.stderr.count("\n") == 1
