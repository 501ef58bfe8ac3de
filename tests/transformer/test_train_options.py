"""The command line of training: published commands, old spellings, defaults, and which flags decay what."""

import re

import pytest
import torch
import train as program
from fairseq import optimization
from fairseq.transformer import build_model

from tests.harness import results
from tests.transformer import tiny

PUBLISHED = (
    "--arch transformer_small --clip-norm 0.1 --dropout 0.2 --max-tokens 4000 --criterion label_smoothed_cross_entropy "
    "--label-smoothing 0.1 --lr-scheduler inverse_sqrt --lr 0.25 --optimizer nag --warmup-init-lr 0.25 "
    "--warmup-updates 4000 --max-update 100000 --no-epoch-checkpoints --distributed-world-size 1 --device-id 0 "
    "--seed 1 --rank-scale 0.5 --spectral --spectral-quekey --spectral-outval --wd2fd --wd2fd-quekey --wd2fd-outval "
    "--frobenius-decay 1e-4"
)


def test_the_published_command(data, tmp_path, capsys, recwarn):
    program.main([str(data), *PUBLISHED.split(), "--save-dir", str(tmp_path / "run"), "--max-update", "2"])
    written = results(tmp_path / "run")
    config = tiny.checkpoint(tmp_path / "run")["config"]
    assert written["updates"] == 2
    assert (config["hidden_size"], config["dropout"], config["rank_scale"]) == (256, 0.2, 0.5)
    out = capsys.readouterr().out
    assert "\ndecay: Frobenius decay 1e-4 on 50 tensors of 25 layers; no decay on 25 tensors; " in out
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
        "save_interval": 1, "validate_interval": 1, "adam_betas": [0.9, 0.999], "adam_eps": 1e-8,
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
    assert fallen_back.description.startswith("Frobenius decay 0.1 on 6 tensors of 3 layers; L2 0.1 on ")


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
