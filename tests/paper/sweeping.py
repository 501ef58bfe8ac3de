"""A study with a stand-in for its trainer, which sweeps are tried on."""

import json
import shutil
from pathlib import Path

import pytest

from paper import scripts, sweep, trial
from paper.resnet import RESNET

REPOSITORY = Path(scripts.__file__).resolve().parent.parent
NORM = "cifar10-resnet20-scale_0.111-norm+spectral"
DENSE = "cifar10-resnet44-scale_0.0-decay_1E-4-reglr"
BASE = "resnet20-cifar10/0.111/norm+spectral"
# Says how it was called; waits for the file GO, if that is set; goes on after an interrupt as the trainers do.
TRAINER = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.path.insert(0, os.environ["REPOSITORY"])
from lab.lock import Lock
if "--help" in sys.argv:
    sys.exit("trainer.py: error: unrecognized arguments: --nonsense" if "--nonsense" in sys.argv else 0)
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--save-dir") + 1])
Lock(folder)
names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
call = {"argv": sys.argv[1:], "folder": str(folder), **{name: os.environ.get(name) for name in names}}
try:  # from here on a test may interrupt
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")
    print("first line")
    print("training", folder, flush=True)
    if os.environ.get("FAIL", "?") in str(folder):
        sys.exit("last words")
    while "GO" in os.environ and not os.path.exists(os.environ["GO"]):
        time.sleep(0.02)
except KeyboardInterrupt:
    (folder / "saved").touch()
    sys.exit(130)
(folder / "results.json").write_text("{}")
"""


def layout(tmp_path: Path, trainer: str) -> Path:
    """Make a copy of the layout with a stand-in trainer, at a path with a space in it; return the study's folder."""
    root = tmp_path / "my copy"
    home = root / RESNET.folder
    home.mkdir(parents=True)
    (root / "paper").mkdir()
    shutil.copy(REPOSITORY / "paper" / "scripts.sh", root / "paper")
    (home / "trainer.py").write_text(trainer)
    return home


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make such a copy, and let sweeps run in it; return the study's folder."""
    home = layout(tmp_path, TRAINER)
    root = home.parent
    for module in (trial, sweep):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("REPOSITORY", str(REPOSITORY))
    monkeypatch.setattr("paper.clusters.Local.seconds", 0.05)
    return home


def calls(home: Path) -> list[dict]:
    """Return how the stand-in has been called so far."""
    path = home.parent.parent / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
