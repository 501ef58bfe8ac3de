"""Mistakes: one line on standard error that names what is wrong, exit status 2, and nothing on disk changed."""

import main as trainer
import pytest
import torch

from tests.deficient.images import write_images
from tests.harness import assert_mistake
from tests.lab.images import write_image

TT = ("--conv", "TensorTrain_0.5")
STUDENT = ("student", "-t", "TEACHER", "-s", "new")

# (arguments after the data set; TEACHER and the like are replaced by paths), and what the line says.
CASES = [
    (("teacher",), "give --conv"),
    (("teacher", "--conv", "Tensortrain_0.5"), "did you mean TensorTrain"),
    (("teacher", "--conv", "Banana_3"), "unknown convolution class"),
    (("teacher", "--conv", "TensorTrain"), "needs a rank scale"),
    (("teacher", "--conv", "TensorTrain_1.5"), "at most 1"),
    (("teacher", "--conv", "Tucker_0"), "above 0"),
    (("teacher", "--conv", "Tucker_0.1_0.2"), "more than one underscore"),
    (("teacher", "--conv", "Shuffle_0.2"), "at least 1"),
    (("teacher", "--conv", "LR_0.5", "--network", "DARTS"), "multiple"),
    (("teacher", "--conv", "ACDC", "--network", "MobileNetV2"), "divide"),
    (("teacher", *TT, "--target-ratio", "0.1"), "--conv Conv"),
    (("teacher", *TT, "--rank-scale", "0.1"), "--conv Conv"),
    (("teacher", "--conv", "Conv", "--rank-scale", "0.1", "--network", "DARTS"), "do not go with DARTS"),
    (("teacher", "--conv", "Conv", "--rank-scale", "0.1", "--target-ratio", "0.1"), "not both"),
    (("teacher", "--conv", "Conv", "--target-ratio", "-1"), "at least 0"),
    (("teacher", "--conv", "Conv", "--target-ratio", "0.0001", "--strict"), "unreachable"),
    (("teacher", "--conv", "Conv", "--wd2fd"), "no effect"),
    (("teacher", "--conv", "Conv", "--spectral"), "no effect"),
    (("teacher", "--conv", "Sep", "--wd2fd"), "not defined for Sep"),
    (("teacher", "--conv", "Shuffle_2", "--wd2fd"), "not defined for Shuffle_2"),
    (("teacher", "--conv", "Hashed_0.1", "--spectral"), "no spectral initialization"),
    (("teacher", *TT, "--wrn_depth", "12"), "6n + 4"),
    (("teacher", *TT, "--wrn_depth", "16", "--AT_split", "3"), "cannot be split"),
    (("teacher", *TT, "--wrn_width", "0"), "above 0"),
    (("teacher", *TT, "--wrn_width", "0.01"), "no channels"),
    (("teacher", *TT, "--network", "Resnet"), "invalid choice"),
    (("teacher", *TT, "--blocktype", "Bottle"), "invalid choice"),
    (("teacher", *TT, "--aux_loss", "SE"), "invalid choice"),
    (("teacher", *TT, "--epochs", "0"), "at least 1"),
    (("teacher", *TT, "--lr", "-0.1"), "at least 0"),
    (("teacher", *TT, "--lr", "nan"), "must be a number"),
    (("teacher", *TT, "--momentum", "2"), "at most 1"),
    (("teacher", *TT, "--alpha", "1.5"), "at most 1"),
    (("teacher", *TT, "--temperature", "0"), "above 0"),
    (("teacher", *TT, "--clip_grad", "0"), "above 0"),
    (("teacher", *TT, "--epoch_step", "60,120"), "ascending epochs"),
    (("teacher", *TT, "--epoch_step", "[3,2]"), "ascending epochs"),
    (("teacher", *TT, "--network", "DARTS", "--epoch_step", "[3]"), "cosine"),
    (("teacher", *TT, "--auxiliary_weight", "0.4"), "no auxiliary head"),
    (("teacher", "--conv", "Conv", "--budget", "1000"), "--budget"),
    (("teacher", *TT, "--budget", "1000"), "--budget"),
    (("teacher", "--conv", "Tucker", "--budget", "1000"), "parameters, not of 1,000 (--budget)"),
    (("teacher", "--conv", "Tucker", "--budget", "1000000000"), "parameters, not of 1,000,000,000 (--budget)"),
    (("teacher", *TT, "--rank-path", "composed"), "--rank-path has no effect"),
    (("teacher", "--module", "PLAIN", "--spectral"), "no layer of this network has a spectral initialization"),
    (("teacher", "--module", "nowhere.py"), "not a Python file"),
    (("teacher", "--module", "EMPTY"), "defines no class Conv"),
    (("teacher", "--module", "BROKEN"), "cannot be loaded"),
    (("teacher", *TT, "--device", "cuda:77"), "is not there"),
    (("teacher", *TT, "--GPU", "x"), "--device must be"),
    (("teacher", *TT, "--data", "nowhere"), "no data set or folder"),
    (("teacher", *TT, "--holdout", "1000"), "leaves none"),
    (("teacher", *TT, "--network", "DARTS", "--data", "SMALL"), "8 x 8 pixels in batches"),
    (("teacher", *TT, "--colour", "red"), "unrecognized"),
    (("teacher", *TT, "-t", "TEACHER", "--resume"), "holds a run with"),
    (("pupil", *TT), "invalid choice"),
    (("student", *TT, "-t", "nowhere"), "no teacher at"),
    ((*STUDENT, *TT, "-t", "EMPTY"), "not a readable checkpoint"),
    ((*STUDENT, *TT, "-t", "CUT"), "may be truncated"),
    ((*STUDENT, *TT, "-t", "OTHER"), "does not say which network"),
    ((*STUDENT, *TT, "-t", "FOREIGN"), "is of another network"),
    ((*STUDENT, *TT, "--data", "THREE"), "of another data set"),
    ((*STUDENT, "--conv", "Sep", "--wrn_depth", "16", "--AT_split", "2"), "do not match"),
    ((*STUDENT, "--conv", "Generic_0.5", "--network", "MobileNetV2"), "do not match"),
    (("student", *TT, "-t", "TEACHER", "-s", "TEACHER"), "the same folder"),
]


@pytest.fixture(scope="module")
def paths(study) -> dict[str, str]:
    """Return what the words in capitals of the cases stand for."""
    folder = study.folder
    study.run("teacher", "--conv", "Sep", "-t", folder / "teacher", "--epochs", 1)
    checkpoint = folder / "teacher" / "checkpoint.t7"
    (folder / "empty.py").write_text("")
    (folder / "broken.py").write_text("1 / 0")
    (folder / "plain.py").write_text("from torch.nn import Conv2d as Conv")
    (folder / "cut.t7").write_bytes(checkpoint.read_bytes()[:1000])
    torch.save({"state_dict": {}}, folder / "other.t7")
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "config": {**state["config"], "conv": "Conv"}}, folder / "foreign.t7")
    for part in ("train", "test"):
        write_image(folder / "small" / part / "a" / "0.png", size=8)
    three = write_images(folder / "three", tuple("xyz"))
    return {
        "TEACHER": str(folder / "teacher"), "EMPTY": str(folder / "empty.py"), "BROKEN": str(folder / "broken.py"),
        "CUT": str(folder / "cut.t7"), "OTHER": str(folder / "other.t7"), "FOREIGN": str(folder / "foreign.t7"),
        "THREE": str(three), "SMALL": str(folder / "small"), "PLAIN": str(folder / "plain.py"),
    }  # fmt: skip


@pytest.mark.parametrize(("arguments", "complaint"), CASES)
def test_bad_input(study, paths, tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    mode, *flags = (paths.get(word, word) for word in arguments)
    defaults = ["-t", "new"] if mode != "student" else []
    argv = study.command(mode, *defaults, *flags)
    assert_mistake(lambda: trainer.main(argv), "main.py", capsys, [complaint], study.folder, tmp_path)
    assert list(tmp_path.iterdir()) == []
