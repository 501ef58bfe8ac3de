"""The published configurations, and what they lead to."""

import json

import pytest
import torch
from eigendamage import networks
from eigendamage.pruning import configs, settings
from eigendamage.pruning.counting import cost
from eigendamage.pruning.methods import METHODS
from eigendamage.pruning.step import Pruner, Target

from tests.eigendamage.pruning import small
from tests.eigendamage.pruning.tiny_prune import prune
from tests.harness import results

PUBLISHED = dict(configs.published())
BASES = {path: config for path, config in PUBLISHED.items() if "/base/" in path}


def plans(flags: str):
    parser = settings.build_parser("main_prune.py", "", tuple(METHODS))
    return settings.plans(parser.parse_args(flags.split()), tuple(METHODS))


@pytest.fixture
def vgg19(tmp_path):
    """A file that says it holds a VGG-19; its weights are not read here."""
    path = tmp_path / "best.t7"
    with torch.device("meta"):
        names = networks.build("vgg", 19, 10).state_dict()
    args = {"network": "vgg", "depth": 19, "dataset": "cifar10"}
    torch.save({"net": dict.fromkeys(names, 0), "args": args, "epoch": 200}, path)
    return path


def test_the_published_grid():
    counts = {}
    for path in BASES:
        group = path.split("/")[1]
        counts[group] = counts.get(group, 0) + 1
    assert counts == {"exp_for_cifar": 2 * 2 * 2 * 5, "exp_for_tiny_imagenet": 5, "exp_for_svd": 2}
    assert len(PUBLISHED) == 2 * len(BASES)
    one = PUBLISHED["configs/exp_for_cifar/cifar100/resnet32/iterative/base/kfacf_full_base.json"]
    assert one["exp_name"] == "cifar100_resnet32_kfacf_full_no_patch_iterative_"
    assert (one["ratio"], one["prune_ratio_limit"], one["batch_size"]) == ("0.5,0.5,0.5,0.5,0.5,0.5,0.5", 0.5, 64)
    svd = PUBLISHED["configs/exp_for_svd/tiny_imagenet/vgg19/one_pass/base/svd_eigendamage.json"]
    assert svd["learning_rate"].split(",") == ["1e-5"] * 6 and svd["fisher_mode"] == "eigen_svd"


def test_a_one_pass_configuration_is_a_run_for_every_ratio(vgg19):
    path = "configs/exp_for_cifar/cifar10/vgg19/one_pass/base/kfacf_eigen_base.json"
    found = plans(f"--config {path} --from {vgg19}")
    assert [plan.rounds[0].target.share for plan in found] == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert all(len(plan.rounds) == 1 and plan.epochs == 150 and plan.batch_size == 128 for plan in found)
    assert found[0].pruner.method == "eigendamage" and found[0].pruner.limits == (0.95,)
    name = "cifar10_vgg19_kfacf_eigen_one_pass_"
    folder = f"runs/pruning/exp_for_cifar/cifar10/vgg19/one_pass/base/{name}"
    assert [plan.folder.as_posix() for plan in found] == [f"{folder}/{step}" for step in range(6)]
    assert [p.folder for p in plans(f"--config ./{path} --from {vgg19}")] == [p.folder for p in found]


def test_an_iterative_configuration_is_one_run(vgg19):
    path = "configs/exp_for_cifar/cifar10/vgg19/iterative/base/fisher_diag_base.json"
    (plan,) = plans(f"--config {path} --from {vgg19}")
    assert [r.target for r in plan.rounds] == [("scores", 0.5)] * 7 and plan.epochs == 7 * 150
    assert (plan.rounds[0].lr, plan.rounds[0].weight_decay, plan.pruner.limits) == (1e-3, 1e-4, (0.5,))


def test_a_sweep_is_a_run_for_every_variant(vgg19):
    path = "configs/exp_for_cifar/cifar10/vgg19/iterative/kfacf_eigen_exps.json"
    (plan,) = plans(f"--config {path} --from {vgg19} --save-dir here")
    assert plan.folder.as_posix() == "here"
    (plan,) = plans(f"--config {path} --from {vgg19}")
    assert plan.folder.name == "cifar10_vgg19_kfacf_eigen_iterative_normal"


def test_variants_change_keys(vgg19, tmp_path):
    base = "configs/exp_for_cifar/cifar10/vgg19/iterative/base/kfacf_eigen_base.json"
    sweep = {"base": base, "exps": [{"name": "normal"}, {"name": "fixr", "fix_rotation": True}]}
    (tmp_path / "exps.json").write_text(json.dumps(sweep))
    one, other = plans(f"--config {tmp_path}/exps.json --from {vgg19} --save-dir here")
    assert [one.pruner.fixed_rotations, other.pruner.fixed_rotations] == [False, True]
    assert other.folder.as_posix() == "here/cifar10_vgg19_kfacf_eigen_iterative_fixr"


def test_flags_override_a_configuration(vgg19):
    path = "configs/exp_for_cifar/cifar10/vgg19/iterative/base/fisher_diag_base.json"
    flags = "--epochs 9 --lr 0.5 --batch-size 7 --limit 0.3 --labels given --data digits"
    (plan,) = plans(f"--config {path} --from {vgg19} {flags}")
    assert [r.epochs for r in plan.rounds] == [1, 1, 1, 2, 1, 1, 2] and {r.lr for r in plan.rounds} == {0.5}
    assert (plan.batch_size, plan.pruner.limits, plan.args.labels, plan.data) == (7, (0.3,), "given", "digits")


def test_published_flags_of_a_file_with_folders(vgg19, tmp_path):
    config = BASES["configs/exp_for_cifar/cifar10/vgg19/iterative/base/fisher_diag_base.json"]
    config = {**config, "summary_dir": "out/run/summary", "checkpoint_dir": "out/run/checkpoint", "fisher_type": "no"}
    (tmp_path / "tmp.json").write_text(json.dumps(config))
    (plan,) = plans(f"--tmp_config {tmp_path}/tmp.json --from {vgg19}")
    assert plan.folder.as_posix() == "out/run" and plan.args.labels == "given"


def test_a_configuration_runs(dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        "exp_name": "mine_", "network": "resnet", "depth": 8, "dataset": "digits", "batch_size": 16, "epoch": "0,1",
        "learning_rate": "1e-3,1e-2", "weight_decay": "1e-4,1e-4", "ratio": "0.5,0.8", "fisher_mode": "OBD_F2",
        "fisher_type": "true", "checkpoint": str(dense / "best.t7"), "prune_mode": "one_pass",
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(config))
    import main_prune

    calls = []
    from eigendamage.pruning import rounds

    collect = rounds.collect
    monkeypatch.setattr(rounds, "collect", lambda *a, **o: calls.append(1) or collect(*a, **o))
    argv = ["--config", str(tmp_path / "mine.json"), "--device", "cpu", "--save-dir", "out"]
    main_prune.main(argv)
    one, other = (results(tmp_path / "out" / str(step)) for step in (0, 1))
    assert (one["epochs"], other["epochs"]) == (0, 1) and one["parameters"] > other["parameters"]
    assert len(calls) == 1  # the statistics of one network are taken once
    alone = results(prune(dense, tmp_path / "alone", "--method kron-obd --ratio 0.8 --epochs 1 --lr 1e-2"))
    assert alone["parameters"] == other["parameters"] and alone["final"] == other["final"]
    main_prune.main([*argv, "--resume", "auto"])


def test_limits_of_flags_alone(vgg19):
    """A layer keeps half of an even network's share of its filters; else what was published."""
    shared = f"--from {vgg19} --target-ratio"
    cases = {f"{shared} 0.25 --method c-obd": (0.75, 0.95), f"{shared} 0.0625 --rounds 2 --method c-obd": (0.75, 0.95),
             f"{shared} 0.1 --method eigendamage": (0.95,), f"{shared} 0.1 --method c-obd --limit 0.9": (0.9,),
             f"--from {vgg19} --ratio 0.5 --method c-obd": (0.95,)}  # fmt: skip
    for flags, limits in cases.items():
        assert plans(flags)[0].pruner.limits == limits


def test_the_published_limit_holds_where_the_other_leaves_too_much():
    pruned = small.pruned("resnet")
    dense = cost(pruned.model, (16, 16))
    pruner = Pruner("magnitude", limits=(0.1, 0.95))
    removed = pruner(pruned, {}, Target("parameters", 0.1), dense, (16, 16), torch.Generator())
    assert removed.limit == 0.95 and 0.098 < removed.cost.parameters / dense.parameters <= 0.1
