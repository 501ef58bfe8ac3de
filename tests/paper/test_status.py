"""Which runs of the scripts are finished: from the files that runs leave, by group and by setting."""

import json
from pathlib import Path

import pytest

from lab.cli import UserError
from lab.lock import Lock
from paper import scripts, status
from paper.resnet import RESNET

NORM = "cifar10-resnet20-scale_0.111-norm+spectral"
SETTING = "cifar10-resnet44-scale_0.0-decay_1E-4-reglr"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    home = tmp_path / RESNET.folder
    home.mkdir()
    for module in (scripts, status):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "STUDIES", {RESNET.folder: RESNET})
    scripts.main(["--quiet"])
    return home


def finish(home: Path, trial: int, accuracy: float, results: str = "results") -> None:
    folder = home / f"{results}/resnet44-cifar10/0.0/1E-4/reglr/{trial}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"final test accuracy": accuracy}))


def printed(capsys, *argv: str) -> list[str]:
    capsys.readouterr()
    status.main(list(argv))
    return capsys.readouterr().out.splitlines()


def test_runs_are_counted_as_the_scripts_are(home, capsys):
    *groups, total = printed(capsys)
    assert total == f"{RESNET.folder}: 0 of  516 finished"
    assert "     0 of    3 finished  cifar10-resnet44" in groups
    assert sum(int(line.split()[2]) for line in groups) == 516


def test_states(home, capsys):
    finish(home, 1, 93.0)
    finish(home, 2, 94.0)
    base = home / "results/resnet20-cifar10/0.111/norm+spectral"
    for leg in ("none", "frob", "norm"):
        (base / leg / "1").mkdir(parents=True)
        (base / leg / "1" / "log.txt").touch()
    (base / "none/1/failed").write_text("script: error: trainer.py failed with status 1\n")
    lock = Lock(base / "frob/1")
    first, *failed, total = printed(capsys, "--only", "*norm+spectral", "--all")
    lock.release()
    assert first == f"     0 of    9 finished, 1 running, 1 failed, 1 stopped  {NORM}"
    assert failed == [f"  failed: {base / 'none/1'}: script: error: trainer.py failed with status 1"]
    # 93 and 94: a mean of 93.5 and a standard deviation of sqrt(0.5)
    assert printed(capsys, "--only", SETTING, "--all")[0].endswith(f"  {SETTING}: 93.50 % (standard deviation 0.71)")
    assert printed(capsys, "--only", SETTING)[0] == "     2 of    3 finished  cifar10-resnet44: 93.00 to 94.00 %"


def test_damaged_results_have_no_accuracy(home, capsys):
    finish(home, 1, 93.0)
    for trial, text in ((2, "[]"), (3, "{")):
        finish(home, trial, 0)
        (home / f"results/resnet44-cifar10/0.0/1E-4/reglr/{trial}/results.json").write_text(text)
    assert printed(capsys, "--only", SETTING)[0] == "     3 of    3 finished  cifar10-resnet44: 93.00 to 93.00 %"


def test_a_loss_is_no_accuracy(home, capsys):
    """What translation ends with."""
    finish(home, 1, 0)
    path = home / "results/resnet44-cifar10/0.0/1E-4/reglr/1/results.json"
    path.write_text(json.dumps({"metric": "validation loss (bits a token)", "final": 4.2}))
    assert printed(capsys, "--only", SETTING)[0] == "     1 of    3 finished  cifar10-resnet44"


def test_results_elsewhere(home, capsys, tmp_path):
    finish(home, 1, 93.0, results=str(tmp_path / "other"))
    assert "1 of" in printed(capsys, "--only", SETTING, "--results", str(tmp_path / "other"))[0]
    assert "0 of" in printed(capsys, "--only", SETTING)[0]
    with pytest.raises(UserError, match="no study has a folder nowhere with results"):
        status.main(["--results", "nowhere"])


def test_mistakes(home):
    for where in ("results", str(home)):  # that the folder is there does not help
        with pytest.raises(UserError, match="no script has been written for a name like nothing"):
            status.main(["--only", "nothing", "--results", where])
    with pytest.raises(UserError, match="no script has been written for a name like nothing"):
        status.main(["--only", "nothing"])
    manifest = home / "generated-scripts" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["jobs"][0]["name"] = "old"
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no setting old any more; write the scripts again"):
        status.main([])
