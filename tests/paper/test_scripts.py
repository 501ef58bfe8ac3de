"""The text of the scripts, the command line, and scripts run for real with a stand-in for the trainer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cli import UserError
from paper import scripts
from paper.resnet import RESNET
from paper.setting import Command, Setting, Study
from tests.harness import REPOSITORY
from tests.paper.sweeping import layout

NORM = "cifar10-resnet20-scale_0.111-norm+spectral"
TRAINER = """
import json, os, sys
folder = sys.argv[sys.argv.index("--save-dir") + 1]
call = {"argv": sys.argv[1:], "cwd": os.getcwd(), "path": os.environ["PYTHONPATH"]}
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(call) + "\\n")
print("training", folder)
print("a warning", file=sys.stderr)
if folder == os.environ.get("FAIL"):
    sys.exit(3)
if folder != os.environ.get("LAZY"):
    open(os.path.join(folder, "results.json"), "w").close()
"""


# Writing


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A copy of the layout with a stand-in trainer, at a path with a space in it; the study's folder."""
    home = layout(tmp_path, TRAINER)
    monkeypatch.setattr(scripts, "ROOT", home.parent)
    monkeypatch.setattr(scripts, "STUDIES", {RESNET.folder: RESNET})
    return home


def written(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "generated-scripts").iterdir())


def test_all_scripts_are_written_and_valid(home, capsys):
    scripts.main([])
    assert "168 scripts for 516 runs written to " in capsys.readouterr().out
    paths = [path for path in (home / "generated-scripts").iterdir() if path.suffix == ".sh"]
    assert {path.stem for path in paths} == {setting.name for setting in RESNET.settings}
    assert len(written(home)) == 169  # nothing else but the manifest
    for path in paths:
        text = path.read_text()
        assert os.access(path, os.X_OK)
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text
        assert str(home) not in text
        assert text.count("  run ") == (3 if "norm+" in path.name else 1)
    for start in range(0, len(paths), 50):  # several files a call would only check the first
        checks = "".join(f"bash -n '{path}' || exit 1\n" for path in paths[start : start + 50])
        assert subprocess.run(["bash", "-c", checks]).returncode == 0


def test_shell_text_of_a_setting(home):
    slot = scripts.pack([setting for setting in RESNET.settings if setting.name == NORM])[0]
    text = scripts.script_text(RESNET, slot, "results", "auto")
    assert f"#   {NORM}, trials 1 2 3\n" in text
    assert "GPU=${GPU:-auto}\nRESULTS=${RESULTS:-results}\n" in text
    loop = """for TRIAL in 1 2 3; do
  DEPTH=20
  MODEL=resnet20
  DECAY=1E-4
  SCALE=0.111
  DATA=cifar10
  LOGDIR="$RESULTS/$MODEL-$DATA/$SCALE/norm+spectral"
  run "$LOGDIR/none/$TRIAL/results.json" trainer.py --data "$DATA" --arch "$MODEL" --device "$GPU" """
    assert loop in text
    assert text.count(' --resume auto "$@"\n') == 3


def test_evaluation_commands_take_no_training_flags():
    commands = (Command(("train.py",)), Command(("score.py", "a 'b' `c`$D"), done="$LOGDIR/bleu.log", training=False))
    setting = Setting("s", (("LOGDIR", "$RESULTS/$TRIAL"),), commands, minutes=1)
    text = scripts.script_text(Study("f", (setting,), resume=("--on",)), scripts.pack([setting])[0], "r", "auto")
    assert '  run "$LOGDIR/results.json" train.py --on "$@"\n' in text
    assert '  run "$LOGDIR/bleu.log" score.py "a \'b\' \\`c\\`$D"\n' in text
    assert scripts.markers(setting, (1,), "r") == ["r/1/results.json", "r/1/bleu.log"]
    assert setting.runs == 1


def test_manifest_lists_the_settings(home):
    scripts.main(["--results", "my results"])
    jobs = scripts.read_manifest(home / "generated-scripts")
    assert len(jobs) == 168
    job = next(job for job in jobs if job["name"] == NORM)
    assert (job["script"], job["minutes"], job["trials"]) == (f"{NORM}.sh", 150, [1, 2, 3])
    assert job["variables"]["MODEL"] == "resnet20"
    assert [command[0] for command in job["commands"]] == ["trainer.py"] * 3
    assert len(job["folders"]) == 9
    assert job["folders"][0] == "my results/resnet20-cifar10/0.111/norm+spectral/none/1"


def test_gpus_are_taken_in_turn(home):
    scripts.main(["--devices", "3", "--gpus", "2"])
    texts = [(home / "generated-scripts" / f"slot_{slot}.sh").read_text() for slot in range(3)]
    assert [text.split("GPU:-")[1][0] for text in texts] == ["0", "1", "0"]


def test_dry_run_writes_nothing(home, capsys):
    scripts.main(["--dry-run", "--only", "*norm+*"])
    output = capsys.readouterr().out
    assert f"  9 runs  {NORM}.sh" in output and "2 scripts for 18 runs would be written to " in output
    assert not (home / "generated-scripts").exists()


def test_additions_are_written_when_asked_for(home, capsys):
    scripts.main(["--additions"])
    assert "170 scripts" in capsys.readouterr().out
    assert "cifar10-resnet20-scale_0.111-decay_1E-4-frob.sh" in written(home)


def test_only_own_scripts_of_an_earlier_call_are_removed(home, capsys):
    folder = home / "generated-scripts"
    scripts.main(["--only", "*resnet44*"])
    first, second = [name for name in written(home) if name.endswith(".sh")]
    shutil.copy(folder / first, folder / "mine.sh")
    (folder / second).write_text("# replaced by hand\n")
    (folder / f"{NORM}.sh").write_text("# in the way\n")
    with pytest.raises(UserError, match="not written by this program"):
        scripts.main(["--only", "*norm+*"])
    (folder / f"{NORM}.sh").unlink()
    capsys.readouterr()
    scripts.main(["--devices", "1"])
    assert f"removed 1 scripts of an earlier call: {first}" in capsys.readouterr().out
    assert written(home) == sorted(["manifest.json", "mine.sh", second, "slot_0.sh"])
    assert (folder / second).read_text() == "# replaced by hand\n"


def test_writing_some_keeps_the_others(home, capsys):
    scripts.main([])
    scripts.main(["--only", "*norm+*", "--results", "elsewhere"])
    assert "removed" not in capsys.readouterr().out
    jobs = scripts.read_manifest(home / "generated-scripts")
    assert len(jobs) == len({job["name"] for job in jobs}) == 168
    assert {job["folders"][0].split("/")[0] for job in jobs if "norm+" in job["name"]} == {"elsewhere"}
    assert len(written(home)) == 169


def test_equal_names_are_refused(home):
    one, *_ = RESNET.settings
    folder = home / "generated-scripts"
    with pytest.raises(UserError, match="same script: " + one.name):
        scripts.write(RESNET, scripts.pack([one, one]), folder, "results")
    twin = Setting("twin", one.variables, one.commands, one.minutes)
    with pytest.raises(UserError, match="same result file"):
        scripts.write(RESNET, scripts.pack([one, twin]), folder, "results")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--study", "nothing"], "invalid choice"),
        (["--only", "nothing"], "no setting has a name like nothing"),
        (["--trials", "0"], "at least 1"),
        (["--results", ""], "--results: must not be empty"),
        (["--out", "/dev/null"], "cannot write"),
    ],
)
def test_mistakes_are_refused(home, argv, message):
    with pytest.raises(UserError, match=message):
        scripts.main(argv)
    assert not (home / "generated-scripts").exists()


def test_a_foreign_manifest_is_refused(home):
    (home / "generated-scripts").mkdir()
    (home / "generated-scripts" / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="manifest.json was not written by this program"):
        scripts.main([])
    assert written(home) == ["manifest.json"]


def test_command_line_in_a_process(tmp_path):
    command = [sys.executable, "-m", "paper", "scripts", "--only", "nothing"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "python -m paper: error: no setting has a name like nothing\n"


# Running


@pytest.fixture
def start(home, tmp_path):
    """Run a script from another folder; return the process and the trainer's calls so far."""
    calls = tmp_path / "calls"

    def start(script: str, *flags: str, folder: Path = home / "generated-scripts", **environment: str):
        clean = {name: value for name, value in os.environ.items() if name not in ("GPU", "RESULTS", "PYTHONPATH")}
        # with CDPATH, cd to a relative folder goes elsewhere or prints
        environment = {"PYTHON": sys.executable, "CALLS": str(calls), "CDPATH": ".", **environment}
        command = [os.path.relpath(folder / script, tmp_path), *flags]
        done = subprocess.run(command, cwd=tmp_path, env=clean | environment, capture_output=True, text=True)
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done, [json.loads(line) for line in lines]

    return start


def folders(calls: list[dict]) -> list[str]:
    return [call["argv"][call["argv"].index("--save-dir") + 1] for call in calls]


BASE = "results/resnet20-cifar10/0.111/norm+spectral"
ORDER = [f"{BASE}/{leg}/{trial}" for trial in (1, 2, 3) for leg in ("none", "frob", "norm")]


def test_running_a_script(home, start):
    scripts.main(["--only", NORM])
    done, calls = start(f"{NORM}.sh")
    assert done.returncode == 0, done.stderr
    assert folders(calls) == ORDER
    expected = (
        f"--data cifar10 --arch resnet20 --device auto --weight-decay 1E-4 --rank-scale 0.111 --seed 1 --save-dir "
        f"{BASE}/norm/1 --spectral --wd2fd --no-frob --normalize {BASE}/frob/1/frobnorms.tensor --resume auto"
    )
    assert calls[2]["argv"] == expected.split()
    assert {call["cwd"] for call in calls} == {str(home)}
    assert {call["path"] for call in calls} == {str(home.parent)}
    log = (home / ORDER[0] / "log.txt").read_text()
    assert "training" in log and "a warning" in log
    assert done.stdout.count("training") == 9


def test_a_restart_skips_what_is_finished(home, start):
    scripts.main(["--only", NORM])
    done, calls = start(f"{NORM}.sh", FAIL=ORDER[4])
    assert done.returncode == 1
    # The third leg of the trial needs the second, the other trials need neither.
    assert folders(calls) == [*ORDER[:5], *ORDER[6:]]
    assert f"trainer.py failed with status 3, see {ORDER[4]}/log.txt" in done.stderr
    assert done.stderr.endswith(f"error: 1 of its runs failed, and start again with it: {ORDER[4]}\n")
    assert f"left out, as it needs the run that failed: {ORDER[5]}" in done.stdout
    assert "status 3" in (home / ORDER[4] / "failed").read_text()
    done, calls = start(f"{NORM}.sh")
    assert done.returncode == 0
    assert folders(calls[8:]) == ORDER[4:6]
    assert done.stdout.count("finished already: ") == 7
    assert (home / ORDER[4] / "log.txt").read_text().count("training") == 2
    assert not (home / ORDER[4] / "failed").exists()


def test_a_run_without_results_has_failed(home, start):
    scripts.main(["--only", NORM])
    done, calls = start(f"{NORM}.sh", LAZY=ORDER[1])
    assert done.returncode == 1
    assert folders(calls) == [*ORDER[:2], *ORDER[3:]]
    assert f"ended without writing {ORDER[1]}/results.json" in done.stderr


def test_an_interrupt_ends_the_script(home, start):
    (home / "trainer.py").write_text(TRAINER.replace("sys.exit(3)", "sys.exit(130)"))
    scripts.main(["--only", NORM])
    done, calls = start(f"{NORM}.sh", FAIL=ORDER[1])
    assert done.returncode == 130
    assert folders(calls) == ORDER[:2]
    assert not (home / ORDER[1] / "failed").exists()


def test_extra_flags_need_a_results_folder(home, start, tmp_path):
    scripts.main(["--only", NORM])
    done, calls = start(f"{NORM}.sh", "--epochs", "1")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith(f"{NORM}.sh: error: ") and done.stderr.count("\n") == 1
    done, calls = start(f"{NORM}.sh", "--data-dir", "a  b*", RESULTS=str(tmp_path / "a try"), GPU="cpu")
    assert done.returncode == 0
    assert all(call["argv"][-4:] == ["--resume", "auto", "--data-dir", "a  b*"] for call in calls)
    assert all(call["argv"][call["argv"].index("--device") + 1] == "cpu" for call in calls)
    assert (tmp_path / "a try" / ORDER[8].partition("/")[2] / "results.json").exists()
    assert not (home / "results").exists()


def test_packed_scripts_elsewhere_with_odd_names(home, start, tmp_path):
    out = tmp_path / "out put"
    results = 'it\'s $HOME {a} "b"'
    scripts.main(["--only", "*resnet44*", "--devices", "1", "--results", results, "--out", str(out), "--trials", "2"])
    done, calls = start("slot_0.sh", folder=out / RESNET.folder / "generated-scripts")
    assert done.returncode == 0, done.stderr
    model, rest = f"{results}/resnet44-", "0.0/1E-4/reglr"
    assert folders(calls) == [f"{model}{data}/{rest}/{trial}" for data in ("cifar100", "cifar10") for trial in (1, 2)]
    jobs = scripts.read_manifest(out / RESNET.folder / "generated-scripts")
    assert [folder for job in jobs for folder in job["folders"]] == folders(calls)


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, "interpreter .venv"),
        ({"CONDA_PREFIX": "conda env"}, "interpreter conda env"),
        ({"CONDA_PREFIX": "conda env", "VIRTUAL_ENV": "active"}, "interpreter active"),
        ({"VIRTUAL_ENV": "not there"}, "interpreter .venv"),
        ({"VIRTUAL_ENV": "active", "PYTHON": "/bin/echo"}, "trainer.py --data cifar10"),
    ],
)
def test_choice_of_the_interpreter(home, start, environment, chosen):
    scripts.main(["--only", NORM])
    for name in (".venv", "conda env", "active"):
        python = home.parent / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\necho interpreter {name}\n")
        python.chmod(0o755)
    values = {name: value if name == "PYTHON" else str(home.parent / value) for name, value in environment.items()}
    done, _ = start(f"{NORM}.sh", **{"PYTHON": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": "", **values})
    assert f"\n{chosen}" in done.stdout
