"""Pruning runs from the command line: every method, targets, what is left in the folder."""

import json

import main_prune_separable
import pytest
import torch
from eigendamage.pruning.methods import METHODS, SEPARABLE
from eigendamage.pruning.pruned import Pruned

import factorized
from lab.data import images
from lab.data.batches import Batches
from tests.eigendamage import tiny
from tests.eigendamage.pruning.tiny_prune import BASE, prune
from tests.harness import results

DENSE = 1_227_594
HEAD = "study network data method metric best final epochs seed".split()


def load(path):
    """Return the network in a file of a run, by nothing but what the file says."""
    state = torch.load(path, weights_only=True)
    pruned = Pruned.rebuild(state["pruned"])
    pruned.model.load_state_dict(state["net"])
    return pruned.model.eval()


@pytest.mark.parametrize("method", [name for name in METHODS if name != SEPARABLE])
def test_every_method_reaches_its_target(dense, tmp_path, method):
    folder = prune(dense, tmp_path / "run", f"--method {method} --target-ratio 0.1 --epochs 1")
    written = results(folder)
    assert list(written)[:9] == HEAD
    assert written["method"] == f"pruned: {method}, L2 decay"
    assert written["dense parameters"] == DENSE and 0.098 * DENSE < written["parameters"] <= 0.1 * DENSE
    for name in ("checkpoint.t7", "best.t7", "pruned.t7", "round1.t7"):
        assert factorized.parameter_count(load(folder / name)) == written["parameters"]
    (entry,) = written["rounds"]
    assert entry["target"] == {"share": 0.1, "of": "parameters"}
    assert {"training loss", "test accuracy", "validation accuracy"} <= entry["after removal"].keys()
    assert entry["after fine-tuning"]["validation accuracy"] == written["final"]
    assert written["final"] <= written["best"] == written["best validation accuracy"]


@pytest.mark.parametrize("method", ["magnitude", "hosvd"])
def test_a_share_of_the_multiply_adds(dense, tmp_path, method):
    written = results(prune(dense, tmp_path, f"--method {method} --target-ratio 0.2 --cost multiply-adds --epochs 0"))
    assert 0.195 < written["multiply-adds"] / written["dense multiply-adds"] <= 0.2
    assert written["epochs"] == 0 and written["best"] == written["final"]


@pytest.mark.parametrize("method", ["eigendamage", "hosvd"])
def test_networks_of_directions_are_merged_and_exported(dense, tmp_path, method):
    folder = prune(dense, tmp_path, f"--method {method} --target-ratio 0.1 --epochs 0")
    model, x = load(folder / "checkpoint.t7"), torch.randn(2, 3, 16, 16)
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected, rtol=1e-4, atol=1e-4)
    merged = factorized.merge(load(folder / "checkpoint.t7"))
    assert not factorized.factorized_modules(merged) and factorized.parameter_count(merged) == DENSE
    torch.testing.assert_close(merged(x), expected, rtol=1e-3, atol=1e-3)


def test_a_share_of_the_scores(dense, tmp_path):
    written = results(prune(dense, tmp_path, "--method magnitude --ratio 0.5 --epochs 0"))
    (entry,) = written["rounds"]
    assert (entry["units"], entry["units removed"]) == (1344, 672)


@pytest.mark.parametrize("method", ["magnitude", "eigendamage"])
def test_rounds_share_epochs_and_reach_the_target_step_by_step(dense, tmp_path, method):
    folder = prune(dense, tmp_path, f"--method {method} --target-ratio 0.04 --rounds 2 --epochs 3")
    written = results(folder)
    shares = [entry["ratio"] for entry in written["rounds"]]
    assert shares == pytest.approx([0.2, 0.04], rel=0.02) and written["ratio"] == shares[1] <= 0.04
    assert written["epochs"] == 3 and "2 rounds" in written["method"]
    assert factorized.parameter_count(load(folder / "round1.t7")) == written["rounds"][0]["parameters"]
    stats = json.loads((folder / "stats.json").read_text())
    assert list(stats) == ["0", "1"] and stats["1"]["cr"] == pytest.approx(100 - 100 * shares[1])
    assert stats["1"]["finetune/test_acc"] == written["final test accuracy"]
    layers = [m for m in load(folder / "round2.t7").modules() if isinstance(m, factorized.Tucker2Conv2d)]
    assert stats["1"]["rotation_params"] == sum(layer.U.numel() + layer.VT.numel() for layer in layers)
    share = (stats["1"]["all_params"] - stats["1"]["rotation_params"]) / DENSE
    assert stats["1"]["unfair_cr"] == pytest.approx(100 - 100 * share)
    assert (stats["1"]["rotation_flops"] > 0) == bool(layers)


def test_options_of_the_methods(dense, tmp_path):
    flags = "--epochs 0 --target-ratio 0.3"
    words = {
        "kron-obs --correction single --labels given": "single correction, labels as given",
        "kron-obd --score published --normalize": "published scores, normalized scores",
        "c-obs --correction none --samples 16 --damping 0.01": "none correction",
        "eigendamage --fix-rotation --wd2fd --epochs 1": "fixed rotations, Frobenius decay",
        "c-obd --re-init --fix-layers 3": "trained anew",
    }
    for number, (method, said) in enumerate(words.items()):
        folder = prune(dense, tmp_path / str(number), f"{flags} --method {method}")
        assert said in results(folder)["method"]
    fixed, layer = load(tmp_path / "3" / "checkpoint.t7"), "layer3.0.conv2"
    assert not fixed.get_submodule(layer).U.requires_grad and fixed.get_submodule(layer).core.requires_grad
    before, after = (load(tmp_path / "3" / name).get_submodule(layer) for name in ("pruned.t7", "checkpoint.t7"))
    assert torch.equal(before.U, after.U) and not torch.equal(before.core, after.core)
    kept = load(tmp_path / "4" / "pruned.t7")
    assert [kept.conv1.out_channels, kept.layer1[0].conv1.out_channels, kept.layer1[0].conv2.out_channels] == [64] * 3


def test_batch_norm_is_renewed(dense, tmp_path):
    """The statistics are the means over the batches of what reaches each normalization."""
    folder = prune(dense, tmp_path, "--method random --target-ratio 0.3 --epochs 0")
    model = load(folder / "checkpoint.t7")
    train, _ = images.load("digits", tmp_path)
    batches = Batches(train, 16, train=True, seed=0)
    means = [model.conv1(pixels).mean((0, 2, 3)) for pixels, _ in batches.epoch(0)]
    torch.testing.assert_close(model.bn.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    assert model.bn.momentum == 0.1


def test_a_pruned_network_is_pruned_further(dense, tmp_path):
    first = prune(dense, tmp_path / "first", "--method c-obd --target-ratio 0.3 --epochs 0")
    second = prune(first, tmp_path / "second", "--method c-obd --target-ratio 0.1 --epochs 0")
    written = results(second)
    assert written["dense parameters"] == DENSE and written["ratio"] == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize(("network", "depth"), [pytest.param("vgg", 11, marks=pytest.mark.slow), ("presnet", 11)])
def test_other_networks(tmp_path, network, depth):
    dense = tiny.train(tmp_path / "dense", f"--network {network} --depth {depth} --epoch 1")
    for method in ("magnitude", "hosvd"):
        written = results(prune(dense, tmp_path / method, f"--method {method} --target-ratio 0.1 --epochs 0"))
        assert written["network"] == f"{network}{depth}" and 0.098 < written["ratio"] <= 0.1


def test_the_same_seed_gives_the_same_numbers(dense, tmp_path):
    flags = "--method c-obd --target-ratio 0.1 --epochs 1"
    one, other, third = (prune(dense, tmp_path / str(n), f"{flags} --seed {seed}") for n, seed in enumerate((1, 1, 2)))
    states = [torch.load(folder / "checkpoint.t7", weights_only=True) for folder in (one, other, third)]
    assert all(torch.equal(states[0]["net"][name], states[1]["net"][name]) for name in states[0]["net"])
    assert states[0]["pruned"] != states[2]["pruned"]


def test_separable(dense, tmp_path):
    """Cores are depthwise, the target is met, and a second round goes on from there."""
    argv = [*BASE, "--from", str(dense), "--epochs", "1"]
    main_prune_separable.main([*argv, "--target-ratio", "0.1", "--save-dir", str(tmp_path / "one")])
    written = results(tmp_path / "one")
    assert written["method"] == "pruned: eigendamage-separable, L2 decay" and 0.098 < written["ratio"] <= 0.1
    layers = [m for m in load(tmp_path / "one" / "best.t7").modules() if isinstance(m, factorized.SeparableConv2d)]
    assert layers and all(layer.core.shape == (layer.rank[0], 1, *layer.kernel_size) for layer in layers)
    more = ["--target-ratio", "0.03", "--rounds", "2", "--save-dir", str(tmp_path / "two")]
    main_prune_separable.main([*argv, *more])
    assert 0.025 < results(tmp_path / "two")["ratio"] <= 0.03
