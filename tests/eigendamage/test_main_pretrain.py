"""What a run leaves behind, and how it trains."""

import dataclasses
import json
import shutil
import zipfile

import main_pretrain
import pytest
import torch

import factorized
from lab.devices import start
from tests.eigendamage import tiny
from tests.harness import HEAD, events, results
from tests.lab.images import SAMPLE

FIELDS = [
    "final validation accuracy",
    "best validation accuracy",
    "original parameter count",
    "compressed parameter count",
    "compression ratio",
]


TAGS = ["train/loss", "train/accuracy", "valid/loss", "valid/accuracy", "hyper/lr"]
TAGS += ["test/acc", "test/loss", "train/acc", "train/lr"]  # as published


def optimizer_of(*flags: str):
    args = main_pretrain.build_parser().parse_args([*tiny.BASE, *flags])
    model, _ = main_pretrain.build_model(args, 10)
    return model, main_pretrain.build_optimizer(args, model, start(args))


# Files


def test_files_of_a_factorized_run(tmp_path, capsys):
    folder = tiny.train(tmp_path / "deep" / "run", "--target-ratio 0.1 --spectral --wd2fd --seed 4")
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {"args", "best", "checkpoint", "events", "results"}
    args = json.loads((folder / "args.json").read_text())
    assert (args["target_ratio"], args["weight_decay"], args["log_dir"], args["seed"]) == (0.1, 1e-4, str(folder), 4)
    written = results(folder)
    assert tuple(written)[: len(HEAD)] == HEAD
    assert [name for name in written if name in FIELDS] == FIELDS
    assert written["compression ratio"] == written["compressed parameter count"] / written["original parameter count"]
    assert f"compression ratio {written['compression ratio']:.6f}" in capsys.readouterr().out
    steps = {tag: found[0] for tag, found in events(folder).items()}
    assert steps == dict.fromkeys([*TAGS, "metric/FrobNorm", "metric/NonOrth"], [0, 1])
    last, best = tiny.checkpoint(folder), tiny.checkpoint(folder, "best.t7")
    assert set(best) == {"net", "best_acc", "epoch", "loss", "args"} < set(last)
    assert last["epoch"] == 2 and best["best_acc"] == written["best validation accuracy"]
    assert last["args"] == best["args"] == args
    model, _ = main_pretrain.build_model(main_pretrain.build_parser().parse_args([*tiny.BASE, "--rank-scale", "1"]), 10)
    assert "layer2.0.downsample.VT" in last["net"] and set(last["net"]) == set(model.state_dict())


def test_files_of_a_dense_run(tmp_path):
    folder = tiny.train(tmp_path, "--epoch 1")
    written = results(folder)
    assert written["compression ratio"] == 1.0
    assert written["compressed parameter count"] == written["original parameter count"]
    assert set(events(folder)) == set(TAGS)
    assert "layer2.0.downsample.0.weight" in tiny.checkpoint(folder)["net"]


def test_no_epochs_evaluate_the_start(tmp_path):
    written = results(tiny.train(tmp_path, "--epoch 0"))
    assert written["final validation accuracy"] == written["best validation accuracy"]


def test_images_held_out_choose_the_best(tmp_path):
    written = results(tiny.train(tmp_path, "--epoch 1 --holdout 8"))
    assert written["validation images"] == "8 held out of the training images"


@pytest.mark.parametrize("network", ["vgg --depth 11", "presnet --depth 11"])
@pytest.mark.parametrize("flags", ["", "--target-ratio 0.1 --kaiming", "--target-ratio 0.05 --spectral"])
def test_every_network_and_start_trains(tmp_path, network, flags):
    folder = tiny.train(tmp_path, f"--network {network} --epoch 1 --batch_size 32 {flags}")
    ratio = float(flags.split()[1]) if flags else 1.0
    assert results(folder)["compression ratio"] == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("flags", ["--amp bf16", "--channels-last", "--rank-path two_step", "--rank-path composed"])
def test_ways_to_compute_agree(tmp_path, flags):
    """The loss after one epoch is the same up to rounding."""
    shared = "--epoch 1 --target-ratio 0.1 --wd2fd --learning_rate 0.001"
    one, other = tiny.train(tmp_path / "1", shared), tiny.train(tmp_path / "2", f"{shared} {flags}")
    losses = [tiny.checkpoint(folder)["loss"] for folder in (one, other)]
    assert losses[1] == pytest.approx(losses[0], rel=5e-2 if "amp" in flags else 1e-3)


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs ../shared/data/tiny-imagenet-sample.zip")
def test_tiny_imagenet_sample(tmp_path):
    """The example of the documentation, on the sample and a smaller network."""
    with zipfile.ZipFile(SAMPLE) as archive:
        archive.extractall(tmp_path)
    for name in sorted(path.name for path in (tmp_path / "tiny-imagenet-200" / "train").iterdir())[1:]:
        keep = sorted((tmp_path / "tiny-imagenet-200" / "train" / name / "images").iterdir())
        for image in keep[4:]:
            image.unlink()
    data = f"--dataset tiny_imagenet --data-dir {tmp_path} --network vgg --depth 11 --epoch 1 --batch_size 64"
    folder = tiny.train(tmp_path / "run", f"{data} --target-ratio 0.02 --wd2fd")
    assert results(folder)["original parameter count"] == 9_228_362  # ten classes
    shutil.rmtree(tmp_path / "tiny-imagenet-200")


# Training


@pytest.mark.parametrize(
    ("epochs", "rates"),
    [
        (200, [0.1] * 100 + [0.01] * 50 + [0.001] * 50),
        (150, [0.1] * 75 + [0.01] * 37 + [0.001] * 38),
        (3, [0.1, 0.01, 0.001]),
        (2, [0.1, 0.01]),
        (1, [0.1]),
    ],
)
def test_schedule(epochs, rates):
    args = main_pretrain.build_parser().parse_args(["--epoch", str(epochs)])
    assert [main_pretrain.learning_rate(args, epoch) for epoch in range(epochs)] == pytest.approx(rates)


def test_examples_of_the_documentation_are_accepted():
    shared = "--spectral --wd2fd"
    for example, parameters in (
        ("--dataset cifar10 --network resnet --depth 32 --weight_decay 1E-4 --target-ratio 0.1", 743_370),
        ("--dataset tiny_imagenet --network vgg --depth 19 --weight_decay 2E-4 --target-ratio 0.02", 410_440),
    ):
        args = main_pretrain.build_parser().parse_args([*example.split(), *shared.split()])
        with torch.device("meta"):
            args = dataclasses.replace(args, spectral=False)  # has no weights to start from
            _, counts = main_pretrain.build_model(args, 200 if "tiny" in example else 10)
        assert counts.compressed == parameters
        assert args.epochs == 200


@pytest.mark.parametrize("network", [["vgg", "16"], ["resnet", "20"], ["presnet", "20"]])
def test_only_factors_are_exempt_from_ordinary_decay(network):
    flags = ["--network", network[0], "--depth", network[1], "--rank-scale", "0.05"]
    model, optimizer = optimizer_of(*flags, "--wd2fd")
    decayed, exempt = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    factors = {id(p) for name, p in model.named_parameters() if name.rpartition(".")[2] in ("U", "VT")}
    assert exempt == factors and len(factors) == 2 * len(factorized.factorized_modules(model))
    assert decayed == {id(p) for p in model.parameters()} - factors
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0]
    assert {(group["momentum"], group["nesterov"], group["dampening"]) for group in optimizer.param_groups} == {
        (0.9, False, 0)
    }
    _, optimizer = optimizer_of(*flags)
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(model.parameters())), 0]


def test_a_step_follows_the_equations():
    """One step in double precision: the gradient of the loss and of lambda / 2 |U VT|^2, or lambda / 2 |p|^2."""
    for flags in (["--wd2fd"], []):
        model, optimizer = optimizer_of("--rank-scale", "0.05", "--weight_decay", "0.1", *flags)
        model.double()
        images, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        for name, p in model.named_parameters():
            if not flags or name.rpartition(".")[2] not in ("U", "VT"):
                loss = loss + 0.05 * p.square().sum()
        for layer in factorized.factorized_modules(model).values() if flags else ():
            loss = loss + 0.05 * (layer.U @ layer.VT).square().sum()
        gradients = dict(zip(before, torch.autograd.grad(loss, list(model.parameters()))))
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), before[name] - 0.1 * gradients[name], msg=name)


def test_unused_flags_of_old_command_lines_warn():
    args = main_pretrain.build_parser().parse_args(["--decay_every", "30"])
    with pytest.warns(UserWarning, match="--decay-every has no effect"):
        main_pretrain.warn_of_unused_flags(args)
