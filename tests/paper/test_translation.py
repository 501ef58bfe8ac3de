"""The 286 settings of the translation study against its tables, and that both programs take their command lines."""

import subprocess
from collections import Counter

import generate
import pytest
import train

from paper import scripts
from paper.scripts import markers, pack
from paper.translation import TRANSLATION

SETTINGS = {setting.name: setting for setting in TRANSLATION.settings}


def parts(method: str, switch: str) -> set[str]:
    """Return the parts that a method such as `spectral_lin+frob_qk_ov` names after `switch`."""
    return {part for word in method.split("+") if word.startswith(switch) for part in word.split("_")[1:]}


def test_counts_and_times():
    assert len(SETTINGS) == len(TRANSLATION.settings) == 286
    assert {setting.minutes for setting in TRANSLATION.settings} == {240}
    assert sum(3 * setting.minutes for setting in TRANSLATION.settings) == 3432 * 60
    assert sum(3 * setting.runs for setting in TRANSLATION.settings) == 858
    assert {len(setting.commands) for setting in TRANSLATION.settings} == {2}
    counts = Counter(
        tuple(dict(setting.variables)[name] for name in ("SCALE", "DECAY")) for setting in TRANSLATION.settings
    )
    decays = ("1e-06", "5e-06", "1e-05", "5e-05", "0.0001")
    expected = {("0.0", "0.0"): 2, ("0.0", "0.0005"): 3, ("0.0", "0.001"): 3}
    expected |= {("0.0", decay): 6 for decay in decays}
    for scale in ("0.25", "0.5"):
        expected |= {(scale, "0.0"): 4} | {(scale, decay): 24 for decay in decays}
    assert counts == expected
    assert [slot.minutes for slot in pack(TRANSLATION.settings)] == [720] * 286


def test_the_rules_of_the_grid():
    for name in SETTINGS:
        method, scale, decay = name.split("-", 2)
        scale, decay = float(scale.removeprefix("scale_")), float(decay.removeprefix("decay_"))
        spectral, frob = parts(method, "spectral"), parts(method, "frob")
        assert decay or not frob
        assert scale or "lin" not in spectral | frob
        assert "ov" in frob or "qk" not in frob
        assert len(spectral & {"qk", "ov"}) in (0, 2)
        assert decay <= 1e-4 or not spectral


def test_a_setting_in_full():
    setting = SETTINGS["spectral_qk_ov+frob_qk_ov-scale_0.25-decay_5e-05"]
    assert setting.variables == (
        ("DATA", "data-bin/iwslt14.tokenized.de-en"),
        ("MODEL", "transformer_small"),
        ("DECAY", "5e-05"),
        ("SCALE", "0.25"),
        ("LOGDIR", "$RESULTS/$MODEL-iwslt14_deen/$SCALE/spectral_qk_ov+frob_qk_ov/$DECAY/$TRIAL"),
    )
    training, evaluation = setting.commands
    assert " ".join(TRANSLATION.argv(training)) == (
        "train.py $DATA --arch $MODEL --clip-norm 0.1 --dropout 0.2 --max-tokens 4000 "
        "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --lr-scheduler inverse_sqrt --lr 0.25 "
        "--optimizer nag --warmup-init-lr 0.25 --warmup-updates 4000 --max-update 100000 --no-epoch-checkpoints "
        "--distributed-world-size 1 --device-id $GPU --seed $TRIAL --save-dir $LOGDIR --rank-scale $SCALE "
        "--spectral-quekey --spectral-outval --wd2fd-quekey --wd2fd-outval --frobenius-decay $DECAY"
    )
    assert " ".join(TRANSLATION.argv(evaluation)) == (
        "generate.py $DATA --batch-size 128 --beam 5 --remove-bpe --quiet --path $LOGDIR/checkpoint_best.pt "
        "--dump $LOGDIR/bleu.log --rank-scale $SCALE --device-id $GPU"
    )
    folder = "results/transformer_small-iwslt14_deen/0.25/spectral_qk_ov+frob_qk_ov/5e-05/2"
    assert markers(setting, [2], "results") == [f"{folder}/results.json", f"{folder}/bleu.log"]


@pytest.mark.parametrize(
    "name",
    ["reglr-scale_0.0-decay_0.0", "spectral_lin_qk_ov+frob_ov-scale_0.5-decay_0.0001", "frob_ov-scale_0.0-decay_0.001"],
)
def test_names(name):
    assert name in SETTINGS


def test_the_programs_accept_every_command():
    for name, setting in SETTINGS.items():
        values = dict(setting.variables) | {"TRIAL": "3", "GPU": "auto", "LOGDIR": "results/run"}
        method = name.split("-")[0]
        commands = [
            [
                values.get(token.removeprefix("$"), token.replace("$LOGDIR", "results/run"))
                for token in TRANSLATION.argv(each)
            ]
            for each in setting.commands
        ]
        assert [command[0] for command in commands] == ["train.py", "generate.py"]
        args = train.build_parser().parse_args(commands[0][1:])
        config = train.model_config(args)
        scale, decay = float(values["SCALE"]), float(values["DECAY"])
        assert (args.seed, args.max_update, args.momentum, config.rank_scale, config.dropout) == (
            3,
            100000,
            0.99,
            scale,
            0.2,
        )
        for switch, flag in (("spectral", "spectral"), ("frob", "wd2fd")):
            chosen = [getattr(args, flag), getattr(args, f"{flag}_quekey"), getattr(args, f"{flag}_outval")]
            assert chosen == [part in parts(method, switch) for part in ("lin", "qk", "ov")]
        assert args.weight_decay == (0 if "frob" in method else decay)
        assert args.frobenius_decay == (decay if "frob" in method else None)
        args = generate.build_parser().parse_args(commands[1][1:])
        assert (args.beam, args.batch_size, args.remove_bpe, args.quiet, args.rank_scale) == (
            5,
            128,
            "subword_nmt",
            True,
            scale,
        )
        assert str(args.path[0]) == "results/run/checkpoint_best.pt"


def test_a_script(tmp_path, capsys):
    name = "spectral_lin_qk_ov+frob_lin_qk_ov-scale_0.5-decay_0.0001"
    scripts.main(["--study", TRANSLATION.folder, "--out", str(tmp_path)])
    assert "286 scripts for 858 runs written to " in capsys.readouterr().out
    script = tmp_path / TRANSLATION.folder / "generated-scripts" / f"{name}.sh"
    text = script.read_text()
    assert '  run "$LOGDIR/results.json" train.py "$DATA" --arch "$MODEL" ' in text
    assert '--frobenius-decay "$DECAY" "$@"\n  run "$LOGDIR/bleu.log" generate.py "$DATA" ' in text
    assert text.count('"$@"') == 1
    assert subprocess.run(["bash", "-n", script]).returncode == 0
