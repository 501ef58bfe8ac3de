"""A mistake of the user's is one line that says what is wrong and what would be right; nothing on disk is changed."""

import json
import shutil

import main_prune
import pytest
import torch
from eigendamage import networks

from tests.eigendamage import tiny
from tests.eigendamage.pruning.tiny_prune import prune
from tests.harness import assert_mistake
from tests.lab.images import write_image

GOOD = "--from dense --method magnitude --target-ratio 0.1 --save-dir new"
CONFIG = {
    "exp_name": "x_", "network": "resnet", "depth": 8, "dataset": "digits", "batch_size": 16, "epoch": "1",
    "learning_rate": "1e-3", "weight_decay": "1e-4", "ratio": "0.5", "fisher_mode": "diag", "fisher_type": "true",
    "fix_layers": 0, "checkpoint": "dense", "normalize": False, "prune_mode": "one_pass", "prune_ratio_limit": 0.95,
}  # fmt: skip
CONFIGS = {
    "typo": {**CONFIG, "learningrate": 1},
    "ekfac": {**CONFIG, "fisher_mode": "ekfac_full"},
    "unknown": {**CONFIG, "fisher_mode": "kfac"},
    "lengths": {**CONFIG, "ratio": "0.5,0.6"},
    "text": {**CONFIG, "ratio": "half"},
    "lacking": {key: value for key, value in CONFIG.items() if key not in ("epoch", "ratio")},
    "patch": {**CONFIG, "fisher_mode": "eigen", "use_patch": False},
    "mode": {**CONFIG, "prune_mode": "twice"},
    "range": {**CONFIG, "ratio": "1.5"},
    "limit": {**CONFIG, "prune_ratio_limit": 2},
    "other": {**CONFIG, "depth": 32},
    "separable": {**CONFIG, "fisher_mode": "eigen_svd"},
    "again": {**CONFIG, "pre_model": "1"},
    "gone": {**CONFIG, "checkpoint": "checkpoint/pretrain/cifar10_vgg19_best.t7"},
    "sweep": {"base": 3, "exps": []},
    "nameless": {"base": "typo.json", "exps": [{"epoch": "1"}]},
    "list": [1],
}  # fmt: skip

# What is typed, and what the message must contain: what is wrong, and what would be right.
CASES = {
    "no network": ("--method magnitude --target-ratio 0.1", "give the network to prune: --from"),
    "no method": ("--from dense --target-ratio 0.1", "give --method (c-obd, kron-obd"),
    "no target": ("--from dense --method magnitude", "give one of --target-ratio", "--ratio"),
    "two targets": (f"{GOOD} --ratio 0.5", "give one of --target-ratio", "--ratio"),
    "unknown method": ("--from dense --method obd --target-ratio 0.1", "--method", "c-obd", "magnitude"),
    "target above one": ("--from dense --method magnitude --target-ratio 1.5", "--target-ratio", "at most 1, not 1.5"),
    "target of zero": ("--from dense --method magnitude --target-ratio 0", "--target-ratio", "above 0"),
    "target out of reach": (f"{GOOD} --limit 0.2", "0.1 of its parameters", "0.2 of its units", "raise the limit"),
    "adds out of reach": (f"{GOOD} --limit 0.2 --cost multiply-adds", "0.1 of its multiply-adds", "is the least"),
    "cost of scores": ("--from dense --method magnitude --ratio 0.1 --cost multiply-adds", "--cost has no effect"),
    "unknown cost": (f"{GOOD} --cost seconds", "--cost", "parameters", "multiply-adds"),
    "no rounds": (f"{GOOD} --rounds 0", "--rounds", "at least 1"),
    "limit above one": (f"{GOOD} --limit 95", "--limit", "at most 1, not 95"),
    "all layers skipped": (f"{GOOD} --fix-layers 9", "all 9 layers are to be skipped"),
    "rotation of nothing": (f"{GOOD} --fix-rotation", "--fix-rotation has no effect", "eigendamage"),
    "decay of nothing": (f"{GOOD} --wd2fd", "--wd2fd has no effect", "Tucker-2"),
    "score of nothing": (f"{GOOD} --score published", "--score has no effect", "kron-obd"),
    "correction of nothing": (f"{GOOD} --correction single", "--correction has no effect", "c-obs"),
    "negative damping": (f"{GOOD} --damping -1", "--damping", "at least 0"),
    "samples of none": (f"{GOOD} --samples 0", "--samples", "at least 1"),
    "another network": (f"{GOOD} --network vgg", "holds a resnet8, but --network is vgg"),
    "another depth": (f"{GOOD} --depth 32", "holds a resnet8, but --depth is 32"),
    "no such folder": (f"{GOOD} --from nowhere", "--from nowhere: no such file or folder", "main_pretrain.py"),
    "empty folder": (f"{GOOD} --from empty", "no best.t7 or checkpoint.t7 in it"),
    "text as checkpoint": (f"{GOOD} --from text.t7", "text.t7 is not a readable checkpoint"),
    "tensor as checkpoint": (f"{GOOD} --from tensor.t7", "tensor.t7 holds no network"),
    "factorized network": (f"{GOOD} --from factorized", "holds a factorized network", "prune a dense one"),
    "network of unknown form": (f"{GOOD} --from nameless.t7", "does not say which network it holds"),
    "other classes": (f"{GOOD} --data two", "linear.weight", "another network"),
    "no such data": (f"{GOOD} --data cifar20", "no data set or folder cifar20"),
    "images too small": (f"{GOOD} --from vgg.t7 --data eight", "of 8 x 8 pixels", "use larger images"),
    "folder of the dense network": (f"{GOOD} --save-dir dense --overwrite", "dense holds the network to prune"),
    "filters of rotated layers": (f"{GOOD} --from rotated", "Tucker-2 form", "magnitude cannot remove", "eigendamage"),
    "finished run": (f"{GOOD} --save-dir run", "run already holds a run", "--resume auto", "--overwrite"),
    "another run": (f"{GOOD} --save-dir run --resume auto", "give the same arguments"),
    "folder that is a file": (f"{GOOD} --save-dir text.t7", "cannot write into text.t7"),
    "continue and replace": (f"{GOOD} --resume auto --overwrite", "give only one"),
    "no such checkpoint": (f"{GOOD} --resume nothing.t7", "--resume nothing.t7: no such file"),
    "checkpoint of the trainer": (f"{GOOD} --resume dense/checkpoint.t7", "is damaged, or no checkpoint of this"),
    "unknown flag": (f"{GOOD} --prune", "unrecognized arguments: --prune"),
    "no such config": ("--config none.json", "none.json: no such file"),
    "nearly published config": ("--config configs/exp_for_cifar/cifar10/vgg19/one_pass/base/kfacf_eigen.json",
                                "configs/exp_for_cifar/cifar10/vgg19/one_pass/base/kfacf_eigen_base.json is"),
    "published config without its network": (
        "--config configs/exp_for_cifar/cifar10/vgg19/one_pass/base/kfacf_eigen_base.json",
        "--from checkpoint/pretrain/cifar10_vgg19_best.t7: no such file or folder"),
    "folder as config": ("--config empty", "empty is a folder"),
    "text as config": ("--config text.t7", "text.t7 is not JSON"),
    "list as config": ("--config list.json", "it holds a list"),
    "method and config": ("--config typo.json --method c-obd", "leave out --method"),
    "unknown key": ("--config typo.json", "unknown key 'learningrate'; did you mean 'learning_rate'?"),
    "method never implemented": ("--config ekfac.json", "'ekfac_full' is not supported: it was never implemented"),
    "unknown mode": ("--config unknown.json", "fisher_mode 'kfac'", "OBD_F2"),
    "rounds of two lengths": ("--config lengths.json", "1 of epoch", "2 of ratio", "one value for each round"),
    "ratio that is no number": ("--config text.json", "ratio must be numbers", "'half'"),
    "missing keys": ("--config lacking.json", "lacks epoch, ratio"),
    "positions apart": ("--config patch.json", "use_patch must be true"),
    "mode of pruning": ("--config mode.json", "one_pass or iterative, not 'twice'"),
    "ratio out of range": ("--config range.json", "ratio 1.5", "at most 1"),
    "limit out of range": ("--config limit.json", "prune_ratio_limit 2"),
    "config of another network": ("--config other.json", "holds a resnet8, but other.json says 32"),
    "config of the other program": ("--config separable.json", "main_prune_separable.py"),
    "checkpoint of a config": ("--config gone.json", "--from checkpoint/pretrain/cifar10_vgg19_best.t7: no such file"),
    "network that was saved before": ("--config again.json", "pre_model has no effect", "--resume auto"),
    "sweep of nothing": ("--config sweep.json", "is no sweep"),
    "variant without a name": ("--config nameless.json", "a variant in exps has no name"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(dense, tmp_path_factory):
    """A folder with a finished run, and files that are wrong in many ways."""
    world = tmp_path_factory.mktemp("world")
    shutil.copytree(dense, world / "dense")
    tiny.train(world / "factorized", "--rank-scale 0.05 --epoch 1")
    prune(dense, world / "run", "--method magnitude --target-ratio 0.3 --epochs 0")
    prune(dense, world / "rotated", "--method hosvd --target-ratio 0.3 --epochs 0")
    (world / "empty").mkdir()
    (world / "text.t7").write_text("weights")
    torch.save(torch.ones(3), world / "tensor.t7")
    torch.save({"net": torch.load(dense / "best.t7", weights_only=True)["net"]}, world / "nameless.t7")
    for name, content in CONFIGS.items():
        (world / f"{name}.json").write_text(json.dumps(content))
    for part in ("train", "test"):
        for label in ("a", "b"):
            write_image(world / "two" / part / label / "0.png", size=16)
            write_image(world / "eight" / part / label / "0.png", size=8)
    vgg = {
        "net": networks.build("vgg", 11, 2).state_dict(),
        "args": {"network": "vgg", "depth": 11, "dataset": "eight"},
    }
    torch.save(vgg, world / "vgg.t7")
    (world / "data").mkdir()
    return world


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(world, case, monkeypatch, capfd):
    typed, *expected = CASES[case]
    monkeypatch.chdir(world)
    argv = ["--device", "cpu", "--data-dir", "data", *typed.split()]
    assert_mistake(lambda: main_prune.main(argv), "main_prune.py", capfd, expected, world)
