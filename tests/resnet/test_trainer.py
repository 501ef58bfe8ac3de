"""Whole runs of the trainer: what they leave behind, and that their steps are those of the method written out."""

import json
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
import trainer
from resnet import build_resnet

import factorized
from lab.cli import UserError
from lab.data.batches import MEAN, STD
from tests.harness import HEAD, events, results, snapshot
from tests.resnet import tiny

ALWAYS = {"args.json", "results.json", "model.th", "best.th", "checkpoint.th"}
DEEP = "--rank-scale 0.5 --square --wd2fd --residual 0.1".split()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny.train(tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def low_rank(tmp_path_factory):
    return tiny.train(tmp_path_factory.mktemp("low_rank") / "run", *tiny.FACTORIZED, "--spectral")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return tiny.train(tmp_path_factory.mktemp("deep") / "run", *DEEP)


def evaluated(capsys, *flags: str) -> str:
    """Return what `--evaluate` prints, but for the file."""
    capsys.readouterr()
    trainer.main([*tiny.BASE, "--evaluate", *flags])
    return capsys.readouterr().out.split(": ", 1)[1]


# Files


def test_files(plain, low_rank, deep):
    for folder, more in ((plain, set()), (low_rank, set()), (deep, {"merged.th"})):
        names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents.")}
        assert names == ALWAYS | more
        assert len(list(folder.iterdir())) == len(names) + 1


def test_args(folder):
    """The published names, whatever form of the flags was typed, and the values of old command lines."""
    flags = "-a resnet20 -b 48 -j 2 -p 7 --learning-rate 0.05 --wd 5e-4 --device cpu --half --epochs 1 --seed 5"
    tiny.train(folder, *flags.split(), "--rank-scale", "0.1", "--no-frob", "--wd2fd")
    text = (folder / "args.json").read_text()
    assert text.startswith('{\n    "arch": ')  # indented by 4
    args = json.loads(text)
    expected = {
        "arch": "resnet20", "data": "digits", "device": "cpu", "workers": 2, "epochs": 1, "start_epoch": 0,
        "batch_size": 48, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "print_freq": 7, "resume": "",
        "evaluate": False, "save_dir": str(folder), "save_every": 10, "rank_scale": 0.1, "square": False,
        "residual": 0.0, "wd2fd": True, "spectral": False, "dump_frobnorms": False, "no_frob": True, "seed": 5,
        "amp": "bf16",
    }  # fmt: skip
    assert {name: args[name] for name in expected} == expected


def test_defaults():
    args = trainer.build_parser().parse_args([])
    defaults = {
        "arch": "resnet32", "data": "cifar10", "workers": 4, "epochs": 200, "batch_size": 128, "lr": 0.1,
        "momentum": 0.9, "weight_decay": 1e-4, "print_freq": 50, "save_every": 10, "rank_scale": 0.0, "residual": 0.0,
        "seed": 0, "amp": "off", "compile": False, "holdout": 0,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in defaults} == defaults


def test_results(plain, low_rank, deep):
    first = ["final validation accuracy", "best validation accuracy"]
    first += ["original parameter count", "compressed parameter count", "compression ratio"]
    for folder, count in ((plain, 269_722), (low_rank, 63_850), (deep, None)):
        written = results(folder)
        assert [name for name in written if name in first] == first
        assert written["original parameter count"] == 269_722
        network = tiny.weights(folder)
        counted = sum(v.numel() for name, v in network.items() if "running" not in name and "tracked" not in name)
        assert written["compressed parameter count"] == counted == (count or counted)
        assert written["compression ratio"] == counted / 269_722
        accuracies = events(folder)["valid/acc"][1]
        assert written["final validation accuracy"] == pytest.approx(accuracies[-1])
        assert written["best validation accuracy"] == pytest.approx(max(accuracies))
        assert written["final test accuracy"] == written["final validation accuracy"]
        assert written["validation images"] == "the test images"
        assert tuple(written)[: len(HEAD)] == HEAD
        assert {"torch", "python"} < set(written)
    assert results(plain)["rank scale"] == 0 and results(low_rank)["rank scale"] == 0.111


TAGS = {"plain": [], "low_rank": ["metric/NucNorm-bound", "metric/NonOrth"], "deep": ["metric/NucNorm-bound"]}


@pytest.mark.parametrize("name", TAGS)
def test_events(name, request):
    """Layer metrics at the start of each epoch and once more at the end; losses and accuracies after each epoch."""
    folder, more = request.getfixturevalue(name), TAGS[name]
    always = ["metric/FrobNorm", "metric/NucNorm", "hyper/lr", "hyper/lr-eff_frob", "hyper/lr-eff_frobsq"]
    for tag in [*always, *more]:
        assert events(folder)[tag][0] == [0, 1, 2], tag
    for tag in ("train/acc", "train/accuracy", "train/loss", "valid/acc", "valid/accuracy", "valid/loss"):
        assert events(folder)[tag][0] == [0, 1], tag
    assert events(folder)["valid/accuracy"] == events(folder)["valid/acc"]
    for tag in {"metric/NucNorm-bound", "metric/NonOrth"} - set(more):
        with pytest.raises(KeyError):
            events(folder)[tag]


def test_the_last_entry_of_the_events_is_of_the_final_network(low_rank):
    args = trainer.build_parser().parse_args([*tiny.BASE, *tiny.FACTORIZED])
    model, _ = trainer.build_model(args, 10)
    model.load_state_dict(tiny.weights(low_rank))
    metrics = factorized.layer_metrics(model.block_convs(), 0.01)
    for tag in ("metric/FrobNorm", "metric/NucNorm", "metric/NonOrth", "hyper/lr-eff_frob"):
        assert events(low_rank)[tag][1][-1] == pytest.approx(metrics[tag], rel=1e-5), tag


@pytest.fixture
def saved(monkeypatch) -> dict[str, list[int]]:
    """The epochs after which each file is saved."""
    saved = defaultdict(list)
    save = trainer.checkpoint.save

    def watched(path, state):
        saved[path.name].append(state["epoch"])
        save(path, state)

    monkeypatch.setattr(trainer.checkpoint, "save", watched)
    return saved


def test_checkpoints(folder, saved):
    """After epochs with indices 2 and 4, and after the last; the latest network after every epoch."""
    tiny.train(folder, "--epochs", "6", "--save-every", "2")
    assert saved["checkpoint.th"] == [3, 5, 6]
    assert saved["model.th"] == [1, 2, 3, 4, 5, 6]
    accuracies = events(folder)["valid/acc"][1]
    best = torch.load(folder / "best.th", weights_only=True)
    assert best["epoch"] == accuracies.index(max(accuracies)) + 1
    state = torch.load(folder / "checkpoint.th", weights_only=True)
    latest = torch.load(folder / "model.th", weights_only=True)
    assert {"epoch", "state_dict", "best_prec1", "optimizer", "random"} <= set(state)
    assert state["epoch"] == latest["epoch"] == 6
    assert state["best_prec1"] == latest["best_prec1"] == best["best_prec1"] == pytest.approx(max(accuracies))
    for name, value in latest["state_dict"].items():
        assert torch.equal(state["state_dict"][name], value)


@pytest.mark.parametrize("every, epochs", [("0", [3]), ("1", [2, 3]), ("10", [3])])
def test_interval_of_checkpoints(folder, every, epochs, saved):
    tiny.train(folder, "--epochs", "3", "--save-every", every)
    assert saved["checkpoint.th"] == epochs


def test_overwrite_leaves_nothing_of_the_earlier_run(folder):
    tiny.train(folder, *DEEP)
    (folder / "notes.txt").write_text("mine")
    tiny.train(folder, "--epochs", "1", "--overwrite")
    assert not (folder / "merged.th").exists()
    assert events(folder)["hyper/lr"][0] == [0, 1]
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("rate", ["1e30", "1e38"])
def test_overwrite_keeps_the_earlier_run_where_the_first_step_fails(folder, rate):
    tiny.train(folder, "--epochs", "1")
    before = snapshot(folder)
    with pytest.raises(UserError, match="the loss is .* after the first step; lower the learning rate"):
        tiny.train(folder, "--overwrite", "--lr", rate)
    assert snapshot(folder) == before


def test_trying_the_first_step_changes_nothing(folder, tmp_path):
    tiny.train(folder, *tiny.FACTORIZED)
    other = tiny.train(tmp_path / "other")
    tiny.train(other, *tiny.FACTORIZED, "--overwrite")
    for name, value in tiny.weights(folder).items():
        assert torch.equal(tiny.weights(other)[name], value), name


def test_a_decay_budget_in_place_of_a_coefficient(folder, tmp_path, capsys):
    """Three steps at 0.1 and three at 0.01, momentum 0.9: a sum of 3.3."""
    tiny.train(folder, *tiny.FACTORIZED, "--decay-budget", "1.65")
    assert "Frobenius decay 0.5 on" in capsys.readouterr().out
    assert results(folder)["decay budget"] == pytest.approx(1.65)
    other = tiny.train(tmp_path / "other", *tiny.FACTORIZED, "--weight-decay", "0.5")
    for name, value in tiny.weights(folder).items():
        torch.testing.assert_close(tiny.weights(other)[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="not allowed with argument"):
        tiny.train(folder, "--decay-budget", "1", "--weight-decay", "1e-4")


# Evaluation


def test_evaluate_prints_the_final_accuracy(plain, low_rank, deep, capsys):
    for folder, flags in ((plain, ()), (low_rank, tiny.FACTORIZED), (deep, DEEP)):
        expected = f"accuracy {results(folder)['final validation accuracy']:.2f}% on 32 test images\n"
        before = sorted((path, path.stat().st_mtime_ns) for path in folder.iterdir())
        for name in ("model.th", "checkpoint.th"):
            assert evaluated(capsys, *flags, "--resume", str(folder / name)) == expected
        assert evaluated(capsys, *flags, "--resume", "auto", "--save-dir", str(folder)) == expected
        assert sorted((path, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


def test_the_deep_network_ends_as_a_dense_one(deep, capsys):
    """merged.th is an ordinary ResNet20, computes the same, and has the same accuracy."""
    merged = build_resnet(20)
    merged.load_state_dict(tiny.weights(deep, "merged.th"))
    args = trainer.build_parser().parse_args([*tiny.BASE, *DEEP])
    model, _ = trainer.build_model(args, 10)
    model.load_state_dict(tiny.weights(deep))
    x = torch.randn(8, 3, 8, 8)
    torch.testing.assert_close(merged.eval()(x), model.eval()(x), rtol=1e-3, atol=1e-3)
    printed = evaluated(capsys, "--resume", str(deep / "merged.th"))
    assert printed == evaluated(capsys, *DEEP, "--resume", str(deep / "model.th"))
    assert printed.startswith(f"accuracy {results(deep)['merged test accuracy']:.2f}%")


def test_held_out_images(folder, capsys):
    tiny.train(folder, "--holdout", "24")
    written = results(folder)
    assert written["validation images"] == "24 held out of the training images"
    for accuracy, images in (("final validation accuracy", 24), ("final test accuracy", 32)):
        share = written[accuracy] * images / 100
        assert share == pytest.approx(round(share), abs=1e-3)
    printed = evaluated(capsys, "--resume", str(folder / "model.th"), "--holdout", "24")
    assert printed == f"accuracy {written['final test accuracy']:.2f}% on 32 test images\n"


def test_target_ratio(folder, capsys):
    tiny.train(folder, "--epochs", "1", "--target-ratio", "0.25", "--spectral")
    written = results(folder)
    assert written["compression ratio"] == pytest.approx(0.25, abs=0.01)
    assert f"compression ratio {written['compression ratio']:.6f}" in capsys.readouterr().out


# Numbers


def test_the_same_seed_gives_the_same_run(plain, tmp_path):
    again = tiny.train(tmp_path / "again")
    other = tiny.train(tmp_path / "other", "--seed", "1")
    for name, value in tiny.weights(plain).items():
        assert torch.equal(tiny.weights(again)[name], value), name
    assert not torch.equal(tiny.weights(other)["linear.weight"], tiny.weights(plain)["linear.weight"])
    for tag in ("train/loss", "valid/loss", "metric/NucNorm"):
        assert events(again)[tag] == events(plain)[tag]


CURVES = {
    "": [3.6383, 2.7979, 2.8880],
    "--rank-scale 0.111 --wd2fd": [3.6503, 3.1036, 3.1066],
    "--rank-scale 0.111 --spectral --wd2fd": [3.3623, 2.9442, 2.8870],
    "--rank-scale 0.5 --square --spectral": [3.4859, 2.8151, 2.7528],
}


@pytest.mark.parametrize("words", CURVES)
def test_loss_curves_are_what_they_were(folder, words):
    """Pinned, so that a change of results is noticed. The learning rate is small, so that rounding stays small."""
    tiny.train(folder, "--epochs", "3", "--lr", "0.01", "--no-channels-last", *words.split())
    assert events(folder)["train/loss"][1] == pytest.approx(CURVES[words], rel=2e-3)


def written_out(model, batches, args, frobenius: float):
    """Train with nothing but tensors: SGD, momentum, L2 decay, and Frobenius decay by autograd."""
    layers = model.block_convs()
    factors = {f for layer in layers for f in layer.factors()} if args.wd2fd else set()
    velocity = {p: torch.zeros_like(p) for p in model.parameters()}
    losses = []
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        penalty = sum((frobenius / 2 * layer.product().square().sum() for layer in layers if factors), torch.zeros(()))
        gradients = torch.autograd.grad(loss + penalty, list(velocity))
        with torch.no_grad():
            for (parameter, buffer), gradient in zip(velocity.items(), gradients):
                decay = 0.0 if parameter in factors else args.weight_decay
                buffer.mul_(args.momentum).add_(gradient + decay * parameter)
                parameter.sub_(args.lr * buffer)
        losses.append(loss.item())
    return losses


METHODS = {
    "": "low-rank, random start, L2 decay",
    "--spectral --wd2fd": "low-rank, spectral start, Frobenius decay",
    "--square --wd2fd": "low-rank, deep form, random start, Frobenius decay",
    "--weight-decay 0": "low-rank, random start, no decay",
    "--wd2fd --no-frob": "low-rank, random start, no decay of the factors",
    "--wd2fd --no-frob --normalize FILE": "low-rank, random start, no decay of the factors, imposed norms",
    "--wd2fd --normalize FILE": "low-rank, random start, Frobenius decay of the factors, imposed norms",
    "--spectral --normalize FILE": "low-rank, spectral start, L2 decay of the factors, imposed norms",
}


@pytest.mark.parametrize(("words", "expected"), METHODS.items())
def test_results_name_the_method_that_was_run(words, expected, tmp_path):
    if "FILE" in words:
        tiny.train(tmp_path / "norms", *tiny.FACTORIZED, "--dump-frobnorms")
        words = words.replace("FILE", str(tmp_path / "norms" / "frobnorms.tensor"))
    written = results(tiny.train(tmp_path / "run", "--rank-scale", "0.111", *words.split()))
    assert written["method"] == expected


@pytest.mark.parametrize("words", ["", "--wd2fd", "--wd2fd --no-frob", "--square", "--square --wd2fd"])
def test_training_equals_the_method_written_out(words):
    """In double precision, three steps with a large decay, through the trainer's own optimizer and loop."""
    argv = [*tiny.BASE, *words.split(), "--rank-scale", "0.2", "--weight-decay", "0.01"]
    args = trainer.build_parser().parse_args(argv)
    computing = trainer.devices.start(args)
    train, _, _ = trainer.load_data(args, computing)
    epoch = [(images.double(), labels) for images, labels in train.epoch(0)]
    train.epoch = lambda index: iter(epoch)
    model = trainer.build_model(args, 10)[0].double()
    reference = trainer.build_model(args, 10)[0].double()
    reference.load_state_dict(model.state_dict())
    optimizer = trainer.build_optimizer(args, model, computing)
    averages = trainer.Classifier(model, optimizer, computing).train_epoch(train, 0)
    losses = written_out(reference.train(), epoch, args, 0.0 if args.no_frob else args.weight_decay)
    assert averages.loss == pytest.approx(sum(losses) / 3, rel=1e-6)
    for (name, ours), theirs in zip(model.state_dict().items(), reference.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9, msg=name)


def test_the_images_are_normalized_padded_and_cropped():
    """Zero padding by 4 before cropping, ImageNet's mean and deviation; digits are not mirrored."""
    args = trainer.build_parser().parse_args([*tiny.BASE])
    train, valid, _ = trainer.load_data(args, trainer.devices.start(args))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    assert (MEAN, STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    raw = tiny.digits()[1]
    (images, labels), *others = valid.epoch(0)
    assert not others
    torch.testing.assert_close(images, (raw.images / 255 - mean) / std)
    assert torch.equal(labels, raw.labels)
    crops = {}
    for image in tiny.digits()[0].images:
        padded = F.pad(image, (4, 4, 4, 4))
        crops.update({padded[:, i : i + 8, j : j + 8].numpy().tobytes(): None for i in range(9) for j in range(9)})
    for images, _ in train.epoch(0):
        pixels = ((images * std + mean) * 255).round().to(torch.uint8)
        assert all(image.numpy().tobytes() in crops for image in pixels)
