"""What a run does and leaves behind."""

import json
import re

import pytest
import torch
import train as program
from fairseq import checkpoint as translation_checkpoint
from fairseq.corpus import find_languages, load_dictionaries, load_split
from fairseq.transformer import build_model

from tests.harness import events, results
from tests.transformer import tiny

SMOOTHED = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1"


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A finished run of three epochs."""
    flags = f"--max-epoch 3 --rank-scale 0.5 --spectral --wd2fd --weight-decay 1e-3 {SMOOTHED}"
    return tiny.train(data, tmp_path_factory.mktemp("run") / "run", flags)


def model_of(folder, data, name="checkpoint_last.pt"):
    languages = find_languages(data)
    dictionaries = load_dictionaries(data, *languages)
    model = translation_checkpoint.load_model(folder / name, languages, dictionaries)
    return model, load_split(data, "valid", *languages, dictionaries)


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        "--rank-scale 0",
        "--rank-scale 0.5 --spectral --spectral-quekey --spectral-outval --wd2fd --wd2fd-quekey --wd2fd-outval",
    ],
)
def test_a_tiny_transformer_learns_to_reverse(tmp_path, flags):
    data = tiny.make_data(tmp_path, {"train": 400, "valid": 30}, longest=4)
    learning = "--max-tokens 300 --max-epoch 18 --optimizer adam --lr 0.006 --lr-scheduler fixed --clip-norm 1"
    size = "--hidden-size 32 --filter-size 64 --dropout 0 --relu-dropout 0"
    files = "--no-epoch-checkpoints --no-diagnostics"
    run = tiny.train(data, tmp_path / "run", f"{learning} {size} {files} --weight-decay 1e-4 {flags}")
    assert results(run)["best validation loss"] < 0.35  # bits; the entropy of a letter is 3
    model, corpus = model_of(run, data, "checkpoint_best.pt")
    right = 0
    for source, target in zip(corpus.source, corpus.target):
        words = [2]
        while len(words) <= len(target):
            scores = model(torch.tensor(source)[None].long(), torch.tensor([words]))
            words.append(scores[0, -1].argmax().item())
        right += words[1:] == list(target) + words[len(target) + 1 :]
    assert right >= 0.75 * len(corpus)


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_of_a_run(done):
    names = {re.sub(r"events\.out.*", "events", path.name) for path in done.iterdir()}
    numbered = {f"checkpoint{epoch}.pt" for epoch in (1, 2, 3)}
    assert names == numbered | {"checkpoint_last.pt", "checkpoint_best.pt", "args.json", "results.json", "events"}
    arguments = json.loads((done / "args.json").read_text())
    assert (arguments["max_epoch"], arguments["label_smoothing"], arguments["lr"]) == (3, 0.1, [0.25])


def test_results(done, data):
    written = results(done)
    last, best = tiny.checkpoint(done), tiny.checkpoint(done, "checkpoint_best.pt")
    model, _ = model_of(done, data)
    # Counts by the formula, for vocabularies of 12 symbols, width 16, filter 32, one layer, ranks 6 (12 rows) and 8.
    dense = (3 * 12 + 2 * 1024) * 16 + 12 + 12 * 16**2 + 4 * 16 * 32 + 14 * 16
    factorized = 3 * 6 * (12 + 16) + 2 * 8 * (1024 + 16) + 12 + 12 * 16 * 8 + 4 * 8 * (16 + 32) + 14 * 16
    assert written["original parameter count"] == dense
    assert written["compressed parameter count"] == factorized == sum(p.numel() for p in model.parameters())
    assert written["compression ratio"] == factorized / dense
    assert written["updates"] == last["updates"] == 15
    assert written["best epoch"] == best["best"]["epoch"] == last["best"]["epoch"] == best["epoch"] - 1
    assert written["best validation loss"] == last["best"]["nll_loss"]
    tags = {"valid/nll_loss": written["final validation loss"], "valid/loss": None, "train/loss": None}
    for tag, value in tags.items():
        epochs, values = events(done)[tag]
        assert list(epochs) == [1, 2, 3]
        assert value is None or values[-1] == pytest.approx(value, rel=1e-6)


def test_scalars(done):
    for tag in ("FrobNorm/QueKey", "NucNorm/OutVal", "NucNorm/QueKey-Bound", "NonOrth/Linear", "hyper/lr"):
        assert list(events(done)[tag][0]) == [1, 2, 3]
    assert events(done)["hyper/lr"][1][0] == 0.25


def test_the_first_norms_are_those_of_the_initial_model(done, data):
    """Independently: products multiplied out, singular values of each."""
    state = tiny.checkpoint(done)
    torch.manual_seed(1)
    model = build_model(program.model_config(_args(state)), 12, 12)
    products = []
    for module in (*model.encoder.layers, *model.decoder.layers):
        for name in ("self_attention", "cross_attention"):
            attention = getattr(module, name, None)
            if attention is not None:
                Q, K = attention.query_key.query, attention.query_key.key
                products += [Q[i : i + 4].T @ K[i : i + 4] for i in range(0, len(Q), 4)]
    assert len(products) == 6
    norms = [p.square().sum().sqrt().item() for p in products]
    nuclear = [torch.linalg.svdvals(p.double()).sum().item() for p in products]
    assert events(done)["FrobNorm/QueKey"][1][0] == pytest.approx(sum(norms) / 6, rel=1e-5)
    assert events(done)["NucNorm/QueKey"][1][0] == pytest.approx(sum(nuclear) / 6, rel=1e-5)


def _args(state):
    argv = ["-", "--arch", "transformer_small", "--rank-scale", "0.5", "--spectral"]
    argv += [item for name in ("hidden", "filter") for item in (f"--{name}-size", str(state["config"][f"{name}_size"]))]
    return program.build_parser().parse_args([*argv, "--num-layers", "1", "--num-heads", "2"])


def test_checkpoints_are_plain_and_say_what_they_are(done):
    state = tiny.checkpoint(done)
    assert state["config"]["rank_scale"] == 0.5 and state["config"]["hidden_size"] == 16
    assert (state["source_language"], state["target_language"]) == ("de", "en")
    assert state["source_dictionary"].keys() == {"size", "sha256"}
    assert state["args"]["arch"] == "transformer_small"


def test_no_epoch_checkpoints(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--no-epoch-checkpoints --save-interval-updates 2")
    assert {p.name for p in run.glob("*.pt")} == {"checkpoint_last.pt", "checkpoint_best.pt"}


def test_save_interval(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--save-interval-updates 2 --max-epoch 1")
    names = {"checkpoint1_2.pt", "checkpoint1_4.pt", "checkpoint1.pt", "checkpoint_last.pt", "checkpoint_best.pt"}
    assert {p.name for p in run.glob("*.pt")} == names
    assert tiny.checkpoint(run, "checkpoint1_4.pt")["offset"] == 4


def test_no_save(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--no-save")
    assert not list(run.glob("*.pt")) and results(run)["updates"] == 10


def test_average_of_the_last_epochs(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--max-epoch 4 --average-last 2 --no-epoch-checkpoints")
    names = {"checkpoint3.pt", "checkpoint4.pt", "checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_avg.pt"}
    assert {p.name for p in run.glob("*.pt")} == names
    third, fourth, mean = (tiny.checkpoint(run, f"checkpoint{n}.pt")["state_dict"] for n in ("3", "4", "_avg"))
    for name, value in mean.items():
        torch.testing.assert_close(value, (third[name] + fourth[name]) / 2)


def test_only_checkpoints_that_are_kept_for_the_average_are_removed(data, tmp_path):
    """Those of an earlier part stay, and those of a part that was not continued are not averaged."""
    run = tiny.train(data, tmp_path / "run", "--max-epoch 4")
    tiny.train(data, run, "--max-epoch 6 --no-epoch-checkpoints --average-last 1")
    assert {p.name for p in run.glob("checkpoint[0-9]*.pt")} == {f"checkpoint{n}.pt" for n in (1, 2, 3, 4, 6)}
    tiny.train(data, run, f"--resume {run / 'checkpoint2.pt'} --max-epoch 3 --average-last 2")
    second, third, mean = (tiny.checkpoint(run, f"checkpoint{n}.pt")["state_dict"] for n in ("2", "3", "_avg"))
    for name, value in mean.items():
        torch.testing.assert_close(value, (second[name] + third[name]) / 2)


def test_average_of_a_finished_run_that_kept_nothing(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--no-epoch-checkpoints")
    tiny.train(data, run, "--no-epoch-checkpoints --average-last 2")
    last, mean = (tiny.checkpoint(run, f"checkpoint_{name}.pt")["state_dict"] for name in ("last", "avg"))
    assert all(torch.equal(value, last[name]) for name, value in mean.items())
    assert results(run)["updates"] == 10


def test_the_largest_seed(data, tmp_path):
    assert results(tiny.train(data, tmp_path / "run", f"--max-epoch 1 --seed {2**63 - 1}"))


def test_the_last_epochs_are_validated_and_saved_whatever_the_interval(data, tmp_path):
    run = tiny.train(data, tmp_path / "a", "--max-epoch 3 --validate-interval 2")
    assert list(events(run)["valid/loss"][0]) == [2, 3] and list(events(run)["train/loss"][0]) == [1, 2, 3]
    run = tiny.train(data, tmp_path / "b", "--max-update 7 --max-epoch 0 --validate-interval 9")
    state = tiny.checkpoint(run)
    assert (state["updates"], state["epoch"], state["offset"]) == (7, 2, 2)


def test_each_subset_has_its_own_events(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--valid-subset test,valid --max-epoch 1")
    test, valid = (events(run)[f"{subset}/nll_loss"][1][0] for subset in ("test", "valid"))
    assert test != valid
    assert results(run)["final validation loss"] == pytest.approx(test, rel=1e-6)


# -- lines ------------------------------------------------------------------------------------------------------------


def test_lines(data, tmp_path, capsys):
    tiny.train(data, tmp_path / "run", f"--log-interval 2 --max-epoch 1 {SMOOTHED}")
    out = capsys.readouterr().out
    assert ", 90 training pairs, 16 of valid; dictionaries of 12 (de) and 12 (en) symbols\n" in out
    assert "\nweights: 38,700\n" in out and "\nmethod: dense; nag at inverse_sqrt, cross-entropy with label smoo" in out
    assert re.search(r"^decay: no decay on \d+ tensors; decay budget 0$", out, re.M)
    assert f"\nrun: in {tmp_path / 'run'}, seed 1\n" in out
    fields = ("loss", "nll_loss", "ppl", "accuracy", "wps", "ups", "wpb", "bsz", "gnorm", "clip", "oom", "sample_size")
    fields += ("num_updates", "lr")
    middle = re.search(r"^\| epoch 001:      2 / 5 (.*)$", out, re.M).group(1)
    assert [part.split("=")[0] for part in middle.split(", ")] == list(fields)
    end = re.search(r"^\| epoch 001 \| loss .*$", out, re.M).group(0)
    assert [part.split()[0] for part in end.split(" | ")[1:]] == list(fields)
    assert re.search(r"^\| epoch 001 \| valid on 'valid' subset \| valid_loss [\d.]+ \| valid_nll_loss", out, re.M)
    end = r"^best validation loss ([\d.]+) after epoch 1, last \1 after 5 updates; \d+ s$"
    assert re.search(end, out, re.M)
    kept = (
        "checkpoint_best.pt is the best network, checkpoint_last.pt the last, to go on from, results.json the numbers"
    )
    assert f"\nin {tmp_path / 'run'}: {kept}\n" in out
    assert (
        f"--path {tmp_path / 'run' / 'checkpoint_best.pt'} --remove-bpe; go on: the same command with --epochs 2" in out
    )


def test_json_lines(data, tmp_path, capsys):
    tiny.train(data, tmp_path / "run", "--log-format json --log-interval 5 --max-epoch 1")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    middle, end, valid = lines
    assert (middle["batch"], middle["batches"], middle["num_updates"]) == (5, 5, 5)
    assert end["loss"] == middle["loss"] and end["ppl"] == pytest.approx(2 ** end["nll_loss"])
    assert (valid["subset"], valid["epoch"]) == ("valid", 1)


def test_no_lines(data, tmp_path, capsys):
    tiny.train(data, tmp_path / "run", "--log-format none --max-epoch 1")
    assert "| epoch" not in capsys.readouterr().out
