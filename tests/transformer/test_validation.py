"""Validation: BLEU, the best checkpoint by it, patience, and sentences without words."""

import json
import re

import generate
import preprocess
import pytest
import torch
from fairseq.validation import Validation

from tests.harness import events, results
from tests.transformer import tiny

LEARNING = "--optimizer adam --lr 0.01 --lr-scheduler fixed --clip-norm 1 --dropout 0 --relu-dropout 0 --no-diagnostics"
BLEU = "--eval-bleu --eval-bleu-remove-bpe --best-checkpoint-metric bleu --maximize-best-checkpoint-metric"


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    """A run that has begun to learn, with BLEU after every epoch."""
    search = '--eval-bleu-args {"beam":3,"max_len_a":1.5,"max_len_b":2}'
    return tiny.train(data, tmp_path_factory.mktemp("bleu") / "run", f"{LEARNING} {BLEU} {search} --max-epoch 12")


@pytest.mark.parametrize("name", ["best", "last"])
def test_bleu_is_that_of_generate(data, learned, name, tmp_path):
    flags = f"--path {learned / f'checkpoint_{name}.pt'} --gen-subset valid --beam 3 --max-len-a 1.5 --max-len-b 2"
    flags += f" --remove-bpe --quiet --device cpu --dump {tmp_path / 'dump'}"
    generate.main([str(data), *flags.split()])
    found = json.loads((tmp_path / "dump.json").read_text())["sacreBLEU"]["score"]
    written = results(learned)
    assert written[f"{'final' if name == 'last' else 'best'} validation BLEU"] == pytest.approx(found)
    assert written["best validation BLEU"] > 5


def test_the_best_epoch_is_that_of_the_highest_bleu(learned):
    epochs, values = events(learned)["valid/bleu"]
    best = tiny.checkpoint(learned, "checkpoint_best.pt")
    assert list(epochs) == list(range(1, 13))
    assert epochs[values.index(max(values))] == results(learned)["best epoch"] == best["epoch"] - 1
    assert max(values) == pytest.approx(best["best"]["bleu"])


def test_kinds_of_bleu(data, tmp_path, capsys):
    """White space alone is no language, and references of single words have no BLEU without smoothing."""
    flags = "--max-epoch 1 --no-diagnostics --no-save --eval-bleu --eval-bleu-print-samples"
    found = {}
    for kind in ("", "--eval-tokenized-bleu", "--eval-bleu-detok space"):
        found[kind] = results(tiny.train(data, tmp_path / f"run{len(found)}", f"{flags} {kind}"))
    out = capsys.readouterr().out
    assert len(re.findall(r"^\| translation: .*\n\| reference: [a-h ]+$", out, re.M)) == 3
    assert len(re.findall(r"valid_bleu [\d.]+ ", out)) == 3
    assert found["--eval-tokenized-bleu"]["final validation BLEU"] == 0 < found[""]["final validation BLEU"]


def test_bleu_changes_nothing_else(data, tmp_path):
    plain, scored = (tiny.train(data, tmp_path / f"run{len(flags)}", flags) for flags in ("", BLEU))
    ours, theirs = tiny.checkpoint(scored)["state_dict"], tiny.checkpoint(plain)["state_dict"]
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert results(scored)["final validation loss"] == results(plain)["final validation loss"]


def test_patience(data, tmp_path, monkeypatch):
    """Losses as they are told: the third and fourth epochs are no better than the second."""
    told = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    validate = Validation.__call__
    monkeypatch.setattr(
        Validation,
        "__call__",
        lambda self: {name: loss._replace(loss=next(told)) for name, loss in validate(self).items()},
    )
    run = tiny.train(data, tmp_path / "run", "--max-epoch 9 --patience 2 --no-diagnostics")
    state = tiny.checkpoint(run)
    assert (state["epoch"], state["waiting"], state["best"]["epoch"]) == (5, 2, 2)
    assert results(run)["updates"] == 20


def test_sentences_without_words_are_left_out(tmp_path):
    """They do not stop the run, and the losses are those of the others."""
    data = tiny.make_data(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            lines = (tmp_path / f"{split}.{language}").read_text().splitlines()
            if split == "valid":
                lines[5:5] = ["", "a b"] if language == "de" else ["a", ""]
            (other / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    splits = [f"--{split}pref {other / split}" for split in ("train", "valid", "test")]
    preprocess.main(f"-s de -t en {' '.join(splits)} --destdir {other / 'data-bin'}".split())
    whole = tiny.train(data, tmp_path / "whole", "--max-epoch 1 --eval-bleu")
    with pytest.warns(UserWarning, match="2 of 18 sentences have no words, .* they are left out"):
        gaps = tiny.train(other / "data-bin", tmp_path / "gaps", "--max-epoch 1 --eval-bleu")
    for name in ("final validation loss", "final validation BLEU"):
        assert results(gaps)[name] == pytest.approx(results(whole)[name])
    assert torch.equal(*(tiny.checkpoint(run)["state_dict"]["decoder.norm.beta"] for run in (whole, gaps)))
