"""The grid against the tables of the paper's study: how many settings, what they are called, what they run."""

from collections import Counter

import pytest

from paper.resnet import RESNET
from paper.scripts import markers
from paper.studies import STUDIES

SETTINGS = {setting.name: setting for setting in RESNET.settings}


def block(setting) -> str:
    """Tell the block of the grid from the setting's name and variables alone."""
    values = dict(setting.variables)
    if "-norm+" in setting.name:
        return "normalization"
    if values["DECAY"] != "1E-4":
        return "decay sweep"
    blocks = {"0.0": "dense", "0.037": "low rank", "0.111": "low rank", "0.333": "low rank", "1.0": "full rank"}
    return blocks.get(values["SCALE"], "wide")


def method(setting) -> str:
    return setting.name.rpartition("-")[2]


def test_resnet_counts():
    counts = Counter(block(setting) for setting in RESNET.settings)
    blocks = {"dense": 10, "low rank": 72, "full rank": 48, "wide": 24, "decay sweep": 12, "normalization": 2}
    assert counts == blocks
    assert len(RESNET.settings) == 168
    assert Counter(dict(setting.variables)["DATA"] for setting in RESNET.settings) == {"cifar10": 91, "cifar100": 77}


def test_resnet_times():
    assert Counter(setting.minutes for setting in RESNET.settings) == {180: 50, 90: 50, 60: 50, 50: 14, 80: 2, 150: 2}
    by_depth = {dict(s.variables)["DEPTH"]: s.minutes for s in RESNET.settings if block(s) != "normalization"}
    assert by_depth == {"20": 50, "32": 60, "44": 80, "56": 90, "110": 180}
    assert sum(3 * setting.minutes for setting in RESNET.settings) == 883 * 60
    assert sum(3 * setting.runs for setting in RESNET.settings) == 516


@pytest.mark.parametrize(
    ("name", "methods", "scales", "depths"),
    [
        ("dense", ["reglr"], ["0.0"], ["110", "20", "32", "44", "56"]),
        (
            "low rank",
            ["frob", "reglr", "spectral", "spectral+frob"],
            ["0.037", "0.111", "0.333"],
            ["110", "32", "56"],
        ),
        (
            "full rank",
            ["frob", "frob+square", "reglr", "spectral", "spectral+frob", "spectral+frob+square", "spectral+square"]
            + ["square"],
            ["1.0"],
            ["110", "32", "56"],
        ),
        ("wide", ["frob", "reglr"], ["3.0", "9.0"], ["110", "32", "56"]),
        ("decay sweep", ["frob", "reglr"], ["0.111"], ["20"]),
        ("normalization", ["norm+reglr", "norm+spectral"], ["0.111"], ["20"]),
    ],
)
def test_resnet_blocks(name, methods, scales, depths):
    settings = [setting for setting in RESNET.settings if block(setting) == name]
    assert sorted({method(setting) for setting in settings}) == methods
    assert sorted({dict(setting.variables)["SCALE"] for setting in settings}) == scales
    assert sorted({dict(setting.variables)["DEPTH"] for setting in settings}) == depths


def test_resnet_sweep_has_its_centre_as_an_addition():
    decays = {dict(setting.variables)["DECAY"] for setting in RESNET.settings if block(setting) == "decay sweep"}
    assert decays == {"5e-06", "1e-05", "5e-05", "0.0005", "0.001", "0.005"}
    assert [setting.name for setting in RESNET.additions] == [
        "cifar10-resnet20-scale_0.111-decay_1E-4-reglr",
        "cifar10-resnet20-scale_0.111-decay_1E-4-frob",
    ]


def test_names_and_results_are_unique():
    for study in STUDIES.values():
        settings = study.settings + study.additions
        names = [setting.name for setting in settings]
        results = [path for setting in settings for path in markers(setting, (1, 2, 3), "results")]
        assert len(set(names)) == len(names)
        assert len(set(results)) == len(results)


def test_resnet_names_and_folders():
    names = {
        "cifar100-resnet32-scale_1.0-decay_1E-4-spectral+frob+square": (
            "results/resnet32-cifar100/1.0/1E-4/spectral+frob+square/2/results.json"
        ),
        "cifar10-resnet110-scale_0.0-decay_1E-4-reglr": "results/resnet110-cifar10/0.0/1E-4/reglr/2/results.json",
        "cifar10-resnet20-scale_0.111-decay_5e-06-frob": "results/resnet20-cifar10/0.111/5e-06/frob/2/results.json",
    }
    for name, path in names.items():
        assert markers(SETTINGS[name], [2], "results") == [path]


def test_resnet_variables_and_command():
    setting = SETTINGS["cifar100-resnet32-scale_1.0-decay_1E-4-spectral+frob+square"]
    assert setting.variables == (
        ("DEPTH", "32"),
        ("MODEL", "resnet32"),
        ("DECAY", "1E-4"),
        ("SCALE", "1.0"),
        ("DATA", "cifar100"),
        ("LOGDIR", "$RESULTS/$MODEL-$DATA/$SCALE/$DECAY/spectral+frob+square/$TRIAL"),
    )
    (command,) = setting.commands
    assert " ".join(command.argv) == (
        "trainer.py --data $DATA --arch $MODEL --device $GPU --weight-decay $DECAY --rank-scale $SCALE --seed $TRIAL "
        "--save-dir $LOGDIR --spectral --wd2fd --square"
    )


@pytest.mark.parametrize(("method", "flags"), [("reglr", ["--wd2fd"]), ("spectral", ["--spectral", "--wd2fd"])])
def test_resnet_normalization_legs(method, flags):
    setting = SETTINGS[f"cifar10-resnet20-scale_0.111-norm+{method}"]
    assert dict(setting.variables)["LOGDIR"] == f"$RESULTS/$MODEL-$DATA/$SCALE/norm+{method}"
    legs = [command.argv[command.argv.index("--save-dir") + 1 :] for command in setting.commands]
    assert legs == [
        ("$LOGDIR/none/$TRIAL", *flags, "--no-frob"),
        ("$LOGDIR/frob/$TRIAL", *flags, "--dump-frobnorms"),
        ("$LOGDIR/norm/$TRIAL", *flags, "--no-frob", "--normalize", "$LOGDIR/frob/$TRIAL/frobnorms.tensor"),
    ]
    assert markers(setting, [3], "here")[1] == f"here/resnet20-cifar10/0.111/norm+{method}/frob/3/results.json"


def test_the_trainer_accepts_every_command():
    import trainer

    for setting in RESNET.settings + RESNET.additions:
        values = dict(setting.variables) | {"TRIAL": "3", "GPU": "auto"}
        for command in setting.commands:
            program, *tokens = RESNET.argv(command)
            args = trainer.build_parser().parse_args([values.get(token.removeprefix("$"), token) for token in tokens])
            assert program == "trainer.py"
            assert (args.arch, args.seed, args.resume) == (values["MODEL"], 3, "auto")
            assert args.weight_decay == float(values["DECAY"])
            assert args.rank_scale == float(values["SCALE"])
