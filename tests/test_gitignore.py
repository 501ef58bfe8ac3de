"""What the programs write by default is ignored by git, and no file of the project is."""

import subprocess

import pytest

from tests.harness import REPOSITORY

WRITTEN = [
    "data/cifar-10-batches-py/data_batch_1",
    "pytorch_resnet_cifar10/generated-scripts/manifest.json",
    "pytorch_resnet_cifar10/save_temp/model.th",
    "pytorch_resnet_cifar10/results/example/args.json",
    "EigenDamage-Pytorch/runs/pretrain/checkpoint.t7",
    "deficient-efficient/wrn_40_2_T/checkpoint.t7",
    "deficient-efficient/wrn_40_2_T.1/checkpoint.t7",
    "deficient-efficient/darts.generic_0.03.student/checkpoint.t7",
    "Transformer-PyTorch/checkpoints/checkpoint_last.pt",
    "Transformer-PyTorch/data/numbers.de-en/code",
    "Transformer-PyTorch/data-bin/numbers.de-en/dict.de.txt",
    "factorized.egg-info/PKG-INFO",
]


def git(*words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("not a checkout of git")
    return done.stdout.splitlines()


def test_what_programs_write_is_ignored():
    assert git("check-ignore", "--no-index", *WRITTEN) == WRITTEN


def test_no_file_of_the_project_is():
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []
    assert git("check-ignore", "--no-index", "results/resnet20/dense-1.json", "docs/pictures/curves.png") == []
