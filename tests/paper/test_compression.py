"""The settings of the compression study against its tables."""

from collections import Counter

from paper import scripts
from paper.compression import COMPRESSION
from paper.scripts import markers, pack

SETTINGS = {setting.name: setting for setting in COMPRESSION.settings}


def test_counts_and_times():
    assert len(SETTINGS) == 78
    assert Counter(setting.minutes for setting in COMPRESSION.settings) == {80: 26, 36: 26, 630: 13, 200: 13}
    assert sum(3 * setting.minutes for setting in COMPRESSION.settings) == 690.3 * 60
    assert sum(3 * setting.runs for setting in COMPRESSION.settings) == 234
    hours = [slot.minutes / 60 for slot in pack(COMPRESSION.settings, longest_first=COMPRESSION.longest_first)]
    assert hours == sorted(hours, reverse=True)
    assert set(hours) == {31.5, 10, 4, 1.8}


def test_ratios_and_methods():
    for label in ("resnet_32_x2", "vgg_19_nfc"):
        for data in ("cifar10", "cifar100", "tiny_imagenet"):
            names = [name for name in SETTINGS if name.startswith(f"{data}-{label}-")]
            assert len(names) == 13
            found = Counter(name.removeprefix(f"{data}-{label}-").partition("-")[0] for name in names)
            larger = (label, data) == ("resnet_32_x2", "tiny_imagenet")
            small = ("0.05", "0.1", "0.15") if larger else ("0.02", "0.05", "0.1")
            assert found == {"0.0": 1, **dict.fromkeys(small, 4)}
            for ratio in small:
                methods = {name.rpartition("-")[2] for name in names if f"-{ratio}-" in name}
                assert methods == {"reglr", "spectral", "frob", "spectral+frob"}


def test_a_setting_in_full():
    setting = SETTINGS["tiny_imagenet-vgg_19_nfc-0.02-spectral+frob"]
    assert setting.variables == (
        ("DATA", "tiny_imagenet"),
        ("RATIO", "0.02"),
        ("MODEL", "vgg"),
        ("DEPTH", "19"),
        ("WD", "2E-4"),
        ("EPOCH", "200"),
        ("LOGDIR", "$RESULTS/vgg_19_nfc-$DATA/$RATIO/spectral+frob/$TRIAL"),
    )
    assert " ".join(COMPRESSION.argv(setting.commands[0])) == (
        "main_pretrain.py --dataset $DATA --network $MODEL --weight_decay $WD --depth $DEPTH --device $GPU "
        "--epoch $EPOCH --target-ratio $RATIO --log_dir $LOGDIR --seed $TRIAL --spectral --wd2fd --auto-resume"
    )
    assert markers(setting, [2], "results") == ["results/vgg_19_nfc-tiny_imagenet/0.02/spectral+frob/2/results.json"]


def test_all_scripts_are_written(tmp_path, capsys):
    scripts.main(["--study", COMPRESSION.folder, "--out", str(tmp_path)])
    assert "78 scripts for 234 runs written to " in capsys.readouterr().out
    folder = tmp_path / COMPRESSION.folder / "generated-scripts"
    assert {path.stem for path in folder.glob("*.sh")} == set(SETTINGS)
    text = (folder / "cifar10-resnet_32_x2-0.0-reglr.sh").read_text()
    assert 'run "$LOGDIR/results.json" main_pretrain.py --dataset "$DATA" ' in text
    assert text.count(' --auto-resume "$@"\n') == 1


def test_the_program_accepts_every_command():
    import main_pretrain

    for setting in COMPRESSION.settings:
        values = dict(setting.variables) | {"TRIAL": "3", "GPU": "auto"}
        program, *tokens = COMPRESSION.argv(setting.commands[0])
        args = main_pretrain.build_parser().parse_args([values.get(t.removeprefix("$"), t) for t in tokens])
        assert program == "main_pretrain.py"
        assert (args.epochs, args.seed, args.resume) == (main_pretrain.EPOCHS, 3, "auto")
        assert (args.target_ratio, args.weight_decay) == (float(values["RATIO"]), float(values["WD"]))
        assert (args.spectral, args.wd2fd) == ("spectral" in setting.name, "frob" in setting.name)


def test_every_pruning_method_at_every_size():
    names = [setting.name for setting in COMPRESSION.additions]
    assert len(names) == len(set(names)) == 2 * 3 * 10 and not {*names} & {*SETTINGS}
    assert "cifar10-vgg_19_nfc-0.02-eigendamage" in names and "cifar10-resnet_32_x2-0.1-random" in names


def test_pruning_programs_accept_every_command():
    import main_prune
    import main_prune_separable
    from eigendamage.pruning.methods import METHODS

    methods = set()
    for setting in COMPRESSION.additions:
        values = dict(setting.variables) | {"TRIAL": "3", "GPU": "cpu"}
        program, *tokens = COMPRESSION.argv(setting.commands[0])
        module = {"main_prune.py": main_prune, "main_prune_separable.py": main_prune_separable}[program]
        args = module.build_parser().parse_args([values.get(t.removeprefix("$"), t) for t in tokens])
        methods.add(args.method)
        assert (args.target_ratio, args.epochs, args.seed, args.resume) == (float(values["RATIO"]), 150, 3, "auto")
        assert args.source.as_posix() == values["DENSE"]
    assert methods == {*METHODS}


def test_a_pruning_setting_starts_from_the_dense_one_of_its_trial():
    (setting,) = [s for s in COMPRESSION.additions if s.name == "cifar10-vgg_19_nfc-0.05-c-obs"]
    (dense,) = markers(SETTINGS["cifar10-vgg_19_nfc-0.0-reglr"], [2], "results")
    assert dict(setting.variables)["DENSE"] == "$RESULTS/vgg_19_nfc-$DATA/0.0/reglr/$TRIAL"
    assert dense == "results/vgg_19_nfc-cifar10/0.0/reglr/2/results.json"
    assert markers(setting, [2], "results") == ["results/vgg_19_nfc-cifar10/0.05/c-obs/2/results.json"]


def test_what_is_planned_is_named_as_its_results_will_be():
    from paper.planned import plans_of

    (setting,) = [s for s in COMPRESSION.additions if s.name == "cifar10-vgg_19_nfc-0.05-eigendamage"]
    (planned,) = plans_of(COMPRESSION, setting)
    assert (planned.network, planned.data) == ("vgg19", "cifar10")
    assert dict(planned.labels) | {} == {
        "layers": "", "method": "eigendamage", "rank scale": "", "target ratio": "0.05", "decay": "0.0001",
    }  # fmt: skip
