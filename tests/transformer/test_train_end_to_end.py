"""From text to a score: a small factorized Transformer learns to reverse strings of letters."""

import json

import generate

from tests.transformer import tiny

FLAGS = (
    "--hidden-size 64 --filter-size 128 --num-layers 1 --num-heads 4 --dropout 0 --relu-dropout 0 --max-tokens 400 "
    "--max-epoch 20 --validate-interval 20 --no-diagnostics --no-epoch-checkpoints --clip-norm 1 --optimizer adam "
    "--lr 0.005 --lr-scheduler inverse_sqrt --warmup-updates 50 --warmup-init-lr 1e-4 "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --rank-scale 0.5 --frobenius-decay 1e-5 "
    "--spectral --spectral-quekey --spectral-outval --wd2fd --wd2fd-quekey --wd2fd-outval"
)


def test_reversing_is_learned(tmp_path, capsys):
    data = tiny.make_data(tmp_path, {"train": 1000, "valid": 50, "test": 100}, longest=4)
    path = tiny.train(data, tmp_path / "run", FLAGS) / "checkpoint_best.pt"
    dump = tmp_path / "bleu.log"
    capsys.readouterr()
    generate.main([str(data), "--path", str(path), "--dump", str(dump), "--max-len-b", "10", "--device", "cpu"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    sources = {name[2:]: text for name, text in (line for line in lines if line[0].startswith("S-"))}
    best = {line[0][2:]: line[2] for line in lines if line[0].startswith("H-")}
    assert len(sources) == 100
    assert sum(" ".join(reversed(source.split())) == best[name] for name, source in sources.items()) >= 95
    assert json.loads((tmp_path / "bleu.log.json").read_text())["tokenized BLEU"]["score"] >= 95
