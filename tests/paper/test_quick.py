"""The quick studies: what is in them, that the programs take them, and that they decay as much as whole trainings."""

from collections import Counter

import generate
import main as tensor_trainer
import main_pretrain
import pytest
import train
import trainer
from deficient import settings as tensor_settings
from fairseq import schedule

import factorized
from paper.quick import QUICK
from paper.studies import STUDIES
from paper.trial import Trial

PARSERS = {
    "trainer.py": trainer.build_parser, "main_pretrain.py": main_pretrain.build_parser,
    "main.py": tensor_settings.build_parser, "train.py": train.build_parser, "generate.py": generate.build_parser,
}  # fmt: skip
CIFAR_STEPS = 391  # of 50,000 images in batches of 128


def quick(folder: str) -> dict:
    return {setting.name: setting for setting in QUICK[folder].settings(STUDIES[folder])}


def parsed(study, setting, command: int = 0):
    trial = Trial(study, setting, 1, "results")
    program, *argv = trial.argv(setting.commands[command])
    return PARSERS[program]().parse_args(argv)


@pytest.mark.parametrize(
    ("folder", "count"),
    [
        # Of one network and data set: dense, 4 methods at 3 scales, 8 at full rank, 2 at 3.0 and 9.0, 2 at 6 decays,
        # and the normalization experiment twice.
        ("pytorch_resnet_cifar10", 1 + 3 * 4 + 8 + 2 * 2 + 2 * 6 + 2),
        ("EigenDamage-Pytorch", 30),  # ResNet: dense, and 4 methods at 0.02, 0.05, 0.1, 0.15; VGG: 0.02, 0.05, 0.1
        ("deficient-efficient", 37),
        # Dense networks without decay, at three coefficients, and at the largest; low-rank ones without, and at three.
        ("Transformer-PyTorch", 2 + 3 * 6 + 3 + 4 + 3 * 24),
    ],
)
def test_all_methods_are_there_and_nothing_runs_twice(folder, count):
    found = quick(folder)
    assert len(found) == count
    original = {setting.name: setting for setting in STUDIES[folder].settings}
    assert found.keys() <= original.keys()

    def methods(names) -> set[str]:
        return {name.split("-scale")[0] if folder.startswith("T") else name.rpartition("-")[2] for name in names}

    assert methods(found) == methods(original)
    calls = Counter()
    for setting in found.values():
        words = Trial(STUDIES[folder], setting, 1, "results").argv(setting.commands[0])
        calls[tuple(word for word in words if not word.startswith("results/"))] += 1
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("folder", QUICK)
def test_results_lie_where_those_of_the_whole_study_would(folder):
    whole = {setting.name: setting for setting in STUDIES[folder].settings}
    for name, setting in quick(folder).items():
        paths = (Trial(STUDIES[folder], each, 2, "R").markers for each in (setting, whole[name]))
        assert next(paths) == next(paths)


@pytest.mark.parametrize("folder", ["pytorch_resnet_cifar10", "EigenDamage-Pytorch", "deficient-efficient"])
def test_images_get_a_tenth_of_the_decay_of_a_whole_training(folder):
    rate = {"pytorch_resnet_cifar10": trainer.learning_rate, "EigenDamage-Pytorch": main_pretrain.learning_rate}
    study, whole = STUDIES[folder], {setting.name: setting for setting in STUDIES[folder].settings}
    for name, setting in list(quick(folder).items())[::7]:
        args, full = parsed(study, setting), parsed(study, whole[name])
        if folder == "deficient-efficient":
            full = full.completed()
        of_epoch = rate.get(folder, tensor_trainer.learning_rate)
        rates = [CIFAR_STEPS * of_epoch(full, epoch) for epoch in range(full.epochs)]
        budget = factorized.decay_budget(rates, full.weight_decay, 0.9)
        assert args.decay_budget == pytest.approx(budget / 10, rel=0.02)  # deep ResNets begin with an epoch of warm-up
        assert args.epochs <= 5


def test_translation_gets_a_tenth_of_the_decay_of_a_whole_training():
    study = STUDIES["Transformer-PyTorch"]
    whole = {setting.name: setting for setting in study.settings}
    found = quick(study.folder)
    for name in ("spectral_lin+frob_lin-scale_0.5-decay_1e-05", "reglr-scale_0.0-decay_0.0001"):
        args, full = parsed(study, found[name]), parsed(study, whole[name])
        rates = schedule.rates(full, updates_per_epoch=1000)
        through = 0.99 if "frob" in name else 0.0  # the momentum that decay goes through
        coefficient = full.frobenius_decay or full.weight_decay
        budget = factorized.decay_budget(rates, coefficient, through)
        assert args.decay_budget == pytest.approx(budget / 10, rel=0.01)
        assert (args.max_update, args.frobenius_decay, args.weight_decay) == (300, None, 0.0)
    undecayed = parsed(study, found["reglr-scale_0.5-decay_0.0"])
    assert (undecayed.decay_budget, undecayed.weight_decay) == (None, 0.0)


@pytest.mark.parametrize("folder", QUICK)
def test_the_programs_take_every_command(folder):
    for setting in list(quick(folder).values())[::3]:
        for number in range(len(setting.commands)):
            parsed(STUDIES[folder], setting, number)
