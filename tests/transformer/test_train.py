"""What a run does and leaves behind."""

import json
import math
import re

import pytest
import torch
import train as program
from fairseq import checkpoint as translation_checkpoint
from fairseq import optimization
from fairseq.corpus import find_languages, load_dictionaries, load_split
from fairseq.trainer import Meter, Trainer
from fairseq.transformer import build_model

from lab import devices
from lab.cli import RunError
from lab.plots import scalars
from tests.transformer import tiny

SMOOTHED = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A finished run of three epochs."""
    flags = f"--max-epoch 3 --rank-scale 0.5 --spectral --wd2fd --weight-decay 1e-3 {SMOOTHED}"
    return tiny.train(data, tmp_path_factory.mktemp("run") / "run", flags)


def model_of(folder, data, name="checkpoint_last.pt"):
    languages = find_languages(data)
    dictionaries = load_dictionaries(data, *languages)
    model = translation_checkpoint.load_model(folder / name, *dictionaries)
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
    assert tiny.results(run)["best validation loss"] < 0.35  # bits; the entropy of a letter is 3
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
    results = tiny.results(done)
    last, best = tiny.checkpoint(done), tiny.checkpoint(done, "checkpoint_best.pt")
    model, _ = model_of(done, data)
    # Counts by the formula, for vocabularies of 12 symbols, width 16, filter 32, one layer, ranks 6 (12 rows) and 8.
    dense = (3 * 12 + 2 * 1024) * 16 + 12 + 12 * 16**2 + 4 * 16 * 32 + 14 * 16
    factorized = 3 * 6 * (12 + 16) + 2 * 8 * (1024 + 16) + 12 + 12 * 16 * 8 + 4 * 8 * (16 + 32) + 14 * 16
    assert results["original parameter count"] == dense
    assert results["compressed parameter count"] == factorized == sum(p.numel() for p in model.parameters())
    assert results["compression ratio"] == factorized / dense
    assert results["updates"] == last["updates"] == 15
    assert results["best epoch"] == best["best"]["epoch"] == last["best"]["epoch"] == best["epoch"] - 1
    assert results["best validation loss"] == last["best"]["nll_loss"]
    tags = {"valid/nll_loss": results["final validation loss"], "valid/loss": None, "train/loss": None}
    for tag, value in tags.items():
        epochs, values = scalars(done, tag)
        assert list(epochs) == [1, 2, 3]
        assert value is None or values[-1] == pytest.approx(value, rel=1e-6)


def test_scalars(done):
    for tag in ("FrobNorm/QueKey", "NucNorm/OutVal", "NucNorm/QueKey-Bound", "NonOrth/Linear", "hyper/lr"):
        assert list(scalars(done, tag)[0]) == [1, 2, 3]
    assert scalars(done, "hyper/lr")[1][0] == 0.25


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
    assert scalars(done, "FrobNorm/QueKey")[1][0] == pytest.approx(sum(norms) / 6, rel=1e-5)
    assert scalars(done, "NucNorm/QueKey")[1][0] == pytest.approx(sum(nuclear) / 6, rel=1e-5)


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
    run = tiny.train(data, tmp_path / "run", "--no-epoch-checkpoints --save-interval 2")
    assert {p.name for p in run.glob("*.pt")} == {"checkpoint_last.pt", "checkpoint_best.pt"}


def test_save_interval(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--save-interval 2 --max-epoch 1")
    names = {"checkpoint1_2.pt", "checkpoint1_4.pt", "checkpoint1.pt", "checkpoint_last.pt", "checkpoint_best.pt"}
    assert {p.name for p in run.glob("*.pt")} == names
    assert tiny.checkpoint(run, "checkpoint1_4.pt")["offset"] == 4


def test_no_save(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--no-save")
    assert not list(run.glob("*.pt")) and tiny.results(run)["updates"] == 10


def test_average_of_the_last_epochs(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--max-epoch 4 --average-last 2 --no-epoch-checkpoints")
    names = {"checkpoint3.pt", "checkpoint4.pt", "checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_avg.pt"}
    assert {p.name for p in run.glob("*.pt")} == names
    third, fourth, mean = (tiny.checkpoint(run, f"checkpoint{n}.pt")["state_dict"] for n in ("3", "4", "_avg"))
    for name, value in mean.items():
        torch.testing.assert_close(value, (third[name] + fourth[name]) / 2)


def test_the_last_epochs_are_validated_and_saved_whatever_the_interval(data, tmp_path):
    run = tiny.train(data, tmp_path / "a", "--max-epoch 3 --validate-interval 2")
    assert list(scalars(run, "valid/loss")[0]) == [2, 3] and list(scalars(run, "train/loss")[0]) == [1, 2, 3]
    run = tiny.train(data, tmp_path / "b", "--max-update 7 --max-epoch 0 --validate-interval 9")
    state = tiny.checkpoint(run)
    assert (state["updates"], state["epoch"], state["offset"]) == (7, 2, 2)


def test_each_subset_has_its_own_scalars(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--valid-subset test,valid --max-epoch 1")
    test, valid = (scalars(run, f"{subset}/nll_loss")[1][0] for subset in ("test", "valid"))
    assert test != valid
    assert tiny.results(run)["final validation loss"] == pytest.approx(test, rel=1e-6)


# -- lines ------------------------------------------------------------------------------------------------------------


def test_lines(data, tmp_path, capsys):
    tiny.train(data, tmp_path / "run", f"--log-interval 2 --max-epoch 1 {SMOOTHED}")
    out = capsys.readouterr().out
    assert "| [de] dictionary: 12 types" in out
    assert "| num. model params: 38700" in out
    fields = ("loss", "nll_loss", "ppl", "wps", "ups", "wpb", "bsz", "gnorm", "clip", "oom", "sample_size")
    fields += ("num_updates", "lr")
    middle = re.search(r"^\| epoch 001:      2 / 5 (.*)$", out, re.M).group(1)
    assert [part.split("=")[0] for part in middle.split(", ")] == list(fields)
    end = re.search(r"^\| epoch 001 \| loss .*$", out, re.M).group(0)
    assert [part.split()[0] for part in end.split(" | ")[1:]] == list(fields)
    assert re.search(r"^\| epoch 001 \| valid on 'valid' subset \| valid_loss [\d.]+ \| valid_nll_loss", out, re.M)
    assert re.search(r"^\| done training in [\d.]+ seconds$", out, re.M)


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


# -- the update -------------------------------------------------------------------------------------------------------


def weights(folder, name="checkpoint_last.pt"):
    return tiny.checkpoint(folder, name)["state_dict"]


def assert_close(ours, theirs):
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-6, msg=name)


WITHOUT_DROPOUT = "--dropout 0 --relu-dropout 0"


def test_accumulated_gradients_are_those_of_the_merged_batch(data, tmp_path):
    """All training pairs at once, in one batch or in several."""
    one = tiny.train(data, tmp_path / "one", f"{WITHOUT_DROPOUT} --max-tokens 10000 --max-update 3")
    many = tiny.train(data, tmp_path / "many", f"{WITHOUT_DROPOUT} --max-sentences 12 --update-freq 8 --max-update 3")
    assert tiny.checkpoint(many)["offset"] == 0 and tiny.checkpoint(many)["updates"] == 2  # of the last two epochs
    assert_close(weights(many, "checkpoint2.pt"), weights(one, "checkpoint2.pt"))


def test_sentence_average(data, tmp_path, capsys):
    """Gradients over sentences are larger than over words, so are the losses."""
    tiny.train(data, tmp_path / "run", "--sentence-avg --max-epoch 1")
    end = re.search(r"\| loss ([\d.]+).* wpb (\d+) \| bsz ([\d.]+) .* sample_size (\d+)", capsys.readouterr().out)
    loss, words, sentences, samples = map(float, end.groups())
    assert samples == round(sentences) and loss > 3 * words / sentences * 0.8


OPTIMIZERS = ("nag --lr 0.1", "sgd --lr 0.01 --momentum 0.9", "adam --lr 0.01", "adagrad --lr 0.1")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(data, tmp_path, optimizer):
    run = tiny.train(data, tmp_path / "run", f"--optimizer {optimizer} --max-epoch 5 --weight-decay 1e-4 --clip-norm 1")
    losses = scalars(run, "train/loss")[1]
    assert losses[-1] < losses[0]


def test_bf16_and_compilation(data, tmp_path):
    """Both only round otherwise."""
    plain = tiny.results(tiny.train(data, tmp_path / "plain", WITHOUT_DROPOUT))
    half = tiny.results(tiny.train(data, tmp_path / "half", f"{WITHOUT_DROPOUT} --amp bf16"))
    assert half["final validation loss"] == pytest.approx(plain["final validation loss"], abs=0.02)
    assert half["final validation loss"] != plain["final validation loss"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--rank-scale 0.5 --wd2fd --weight-decay 1e-3"])
def test_compilation(data, tmp_path, flags):
    plain = tiny.train(data, tmp_path / "plain", f"{WITHOUT_DROPOUT} {flags}")
    compiled = tiny.train(data, tmp_path / "compiled", f"{WITHOUT_DROPOUT} --compile {flags}")
    assert_close(weights(compiled), weights(plain))


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    flags = "--max-epoch 4 --optimizer sgd --momentum 0 --clip-norm 0 --lr-scheduler fixed"
    with pytest.raises(RunError, match="loss in epoch 2 is (nan|inf); stopped, the last checkpoint is as it was"):
        tiny.train(data, tmp_path / "run", f"{flags} --lr 0.1,1e20")
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert tiny.checkpoint(tmp_path / "run")["epoch"] == 2
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_batch_that_does_not_fit_into_memory_is_left_out(data, tmp_path, monkeypatch, capsys):
    backward, calls = Trainer._backward, []

    def failing(self, batch, samples):
        calls.append(samples)
        losses = backward(self, batch, samples)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("stands for a GPU's")
        return losses

    monkeypatch.setattr(Trainer, "_backward", failing)
    tiny.train(data, tmp_path / "run", "--max-epoch 1")
    assert len(calls) == 5
    assert re.search(r"\| oom 1 .*\| num_updates 4 ", capsys.readouterr().out)


def test_the_rate_of_every_update(data, tmp_path, capsys):
    """Warm-up from 0.05 to 0.25 in 4 updates, then the inverse square root."""
    flags = "--lr 0.25 --warmup-init-lr 0.05 --warmup-updates 4 --max-epoch 1 --log-interval 1 --log-format json"
    tiny.train(data, tmp_path / "run", flags)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"batch"' in line]
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.25 * math.sqrt(4 / 5)])


def test_training_stops_at_the_smallest_rate(data, tmp_path):
    run = tiny.train(data, tmp_path / "run", "--max-epoch 0 --lr-scheduler fixed --fa 2 --lr 0.1 --min-lr 0.0005")
    assert tiny.checkpoint(run)["epoch"] == 5  # rates 0.1, 0.1, 0.01, 0.001, and 0.0001 is too small


def test_meter():
    computing = devices.Computing(torch.device("cpu"), None, False, torch.contiguous_format)
    meter = Meter(computing)
    meter.add(torch.tensor([8.0, 4.0, 0.0, 3.0, 1.0]) * math.log(2), tokens=4, sentences=2, samples=4)
    values = meter.read("here")
    assert (values["loss"], values["nll_loss"], values["ppl"]) == pytest.approx((2, 1, 2))
    assert (values["wpb"], values["bsz"], values["wps"]) == (4, 2, 0)
    again = Meter(computing)
    again.load_state_dict(meter.state_dict())
    assert again.read("here")["loss"] == pytest.approx(2)
    meter.add(torch.full((5,), float("nan")), tokens=1, sentences=1, samples=1)
    with pytest.raises(RunError, match="the loss in update 5 is nan"):
        meter.read("update 5")


# -- the command line -------------------------------------------------------------------------------------------------

PUBLISHED = (
    "--arch transformer_small --clip-norm 0.1 --dropout 0.2 --max-tokens 4000 --criterion label_smoothed_cross_entropy "
    "--label-smoothing 0.1 --lr-scheduler inverse_sqrt --lr 0.25 --optimizer nag --warmup-init-lr 0.25 "
    "--warmup-updates 4000 --max-update 100000 --no-epoch-checkpoints --distributed-world-size 1 --device-id 0 "
    "--seed 1 --rank-scale 0.5 --spectral --spectral-quekey --spectral-outval --wd2fd --wd2fd-quekey --wd2fd-outval "
    "--frobenius-decay 1e-4"
)


def test_the_published_command(data, tmp_path, capsys, recwarn):
    program.main([str(data), *PUBLISHED.split(), "--save-dir", str(tmp_path / "run"), "--max-update", "2"])
    results = tiny.results(tmp_path / "run")
    config = tiny.checkpoint(tmp_path / "run")["config"]
    assert results["updates"] == 2
    assert (config["hidden_size"], config["dropout"], config["rank_scale"]) == (256, 0.2, 0.5)
    assert "| weight decay 0: 25 tensors, 6,156 parameters" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert "there is no GPU: running on the CPU, not on --device-id 0" in [str(w.message) for w in recwarn]


SPELLINGS = {
    "--hidden-size 8": "--hidden_size 8",
    "--filter-size 8": "--filter_size 8",
    "--num-layers 3": "--num_layers 3",
    "--num-heads 2": "--num_head 2",
    "--max-epoch 3": "--me 3",
    "--max-update 3": "--mu 3",
    "--learning-rate 0.3": "--lr 0.3",
    "--weight-decay 0.3": "--wd 0.3",
    "--force-anneal 3": "--fa 3",
    "--max-sentences 3": "--batch-size 3",
    "--source-lang de": "-s de",
    "--arch transformer_big": "-a transformer_big",
    "--resume somewhere": "--restore-file somewhere",
}


@pytest.mark.parametrize("flag", SPELLINGS)
def test_old_spellings(flag):
    parse = program.build_parser().parse_args
    base = ["data", "--arch", "transformer"]
    assert parse([*base, *flag.split()]) == parse([*base, *SPELLINGS[flag].split()]) != parse(base)


def test_sizes_change_the_architecture():
    argv = "data --arch transformer_base --num_heads 4 --dropout 0.3 --position timing --no-cross-mask".split()
    config = program.model_config(program.build_parser().parse_args(argv))
    assert (config.hidden_size, config.num_heads, config.dropout, config.position) == (512, 4, 0.3, "timing")
    assert not config.cross_mask


def test_defaults_are_those_of_the_published_code():
    args = program.build_parser().parse_args(["data", "--arch", "transformer"])
    defaults = {
        "max_tokens": 6000, "clip_norm": 25, "optimizer": "nag", "lr": [0.25], "momentum": 0.99, "weight_decay": 0,
        "lr_scheduler": "reduce_lr_on_plateau", "warmup_updates": 4000, "warmup_init_lr": -1, "lr_shrink": 0.1,
        "min_lr": 1e-5, "criterion": "cross_entropy", "label_smoothing": 0, "seed": 1, "log_interval": 1000,
        "save_interval": -1, "validate_interval": 1, "adam_betas": [0.9, 0.999], "adam_eps": 1e-8,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in defaults} == defaults
    assert str(args.save_dir) == "checkpoints"


# -- which parameters get which decay ---------------------------------------------------------------------------------


def decays(flags):
    """Return, by parameter, (weight decay, coefficient of Frobenius decay) as the update applies them."""
    args = program.build_parser().parse_args(["data", "--arch", "transformer", "--num-layers", "1", *flags.split()])
    torch.manual_seed(0)
    model = build_model(program.model_config(args), 10, 10)
    steps = optimization.build(args, model)
    names = {p: name for name, p in model.named_parameters()}
    weight = {names[p]: group["weight_decay"] for group in steps.optimizer.param_groups for p in group["params"]}
    steps.decay.add_gradients()
    return {name: (weight[name], p.grad is not None) for name, p in model.named_parameters()}


FACTORS = re.compile(r"\.(U|VT)$")
KINDS = {
    "linear": lambda name: FACTORS.search(name),
    "quekey": lambda name: "query_key" in name,
    "outval": lambda name: "output_value" in name,
}


@pytest.mark.parametrize("scale", [0, 0.5, 1])
@pytest.mark.parametrize("quekey", [False, True])
@pytest.mark.parametrize("outval", [False, True])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.filterwarnings("ignore:--wd2fd selects nothing")
def test_flags_choose_modules(scale, quekey, outval, linear):
    flags = {"--wd2fd": linear, "--wd2fd-quekey": quekey, "--wd2fd-outval": outval}
    chosen = [kind for kind, on in (("linear", linear), ("quekey", quekey), ("outval", outval)) if on]
    found = decays(f"--rank-scale {scale} --wd 0.01 {' '.join(flag for flag, on in flags.items() if on)}")
    assert len(found) > 20
    for name, decay in found.items():
        frobenius = any(KINDS[kind](name) for kind in chosen)
        assert decay == ((0.0, True) if frobenius else (0.01, False)), name
    assert found["decoder.output.bias"] == (0.01, False)


def test_the_coefficient(capsys):
    """As given, else that of weight decay."""
    parse = program.build_parser().parse_args
    model = build_model(program.model_config(parse(["-", "--arch", "transformer", "--num-layers", "1"])), 9, 9)

    def build(flags):
        return optimization.build(parse(["-", "--arch", "transformer", "--wd2fd-quekey", *flags.split()]), model)

    assert build("--frobenius-decay 0.3").decay.coefficient == 0.3
    assert build("--frobenius-decay 0.3 --weight-decay 0.1").decay.coefficient == 0.3
    fallen_back = build("--weight-decay 0.1")
    assert fallen_back.decay.coefficient == 0.1
    line = "| Frobenius decay 0.1, the value of --weight-decay since --frobenius-decay is not given: 3 modules (quekey)"
    assert fallen_back.description[1].startswith(line)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--wd2fd-quekey", "--wd2fd-quekey: the Frobenius decay is 0; give --frobenius-decay or --weight-decay"),
        ("--wd2fd-outval --frobenius-decay 0 --wd 0.1", "--wd2fd-outval: the Frobenius decay is 0"),
        ("--frobenius-decay 0.1", "--frobenius-decay 0.1 decays nothing: select modules with --wd2fd-quekey"),
        ("--frobenius-decay 0.1 --rank-scale 0.5", "--frobenius-decay 0.1 decays nothing"),
        ("--wd2fd --wd 0.1", "--wd2fd selects nothing: there are no two-factor layers without --rank-scale"),
        ("--spectral", "--spectral has no effect: there are no two-factor layers without --rank-scale"),
    ],
)
def test_flags_in_vain(flags, message):
    with pytest.warns(UserWarning, match=re.escape(message)):
        decays(flags)


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["off", "bf16", "fp16"])
def test_a_gpu_trains_as_the_cpu(data, tmp_path, precision):
    flags = f"{WITHOUT_DROPOUT} --rank-scale 0.5 --wd2fd --wd2fd-outval --weight-decay 1e-3"
    cpu = tiny.results(tiny.train(data, tmp_path / "cpu", flags))
    gpu = tiny.results(tiny.train(data, tmp_path / "gpu", f"{flags} --device cuda --amp {precision}"))
    tolerance = 1e-3 if precision == "off" else 0.05
    assert gpu["final validation loss"] == pytest.approx(cpu["final validation loss"], abs=tolerance)
