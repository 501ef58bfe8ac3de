"""Sweeps over a stand-in for a trainer: what runs, goes on, fails, is shared with other processes, is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.cli import RunError, UserError
from lab.lock import Lock
from paper import dispatch, sweep
from paper.resnet import RESNET
from paper.trial import Trial
from paper.view import View
from tests.paper.sweeping import BASE, DENSE, NORM, REPOSITORY, calls, make

pytest.importorskip("submitit")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    return make(tmp_path, monkeypatch)


def run(*argv: str) -> None:
    sweep.main([RESNET.folder, *argv])


def test_all_trials_of_a_setting_run_as_its_script_would_run_them(home, capfd):
    run("--only", NORM, "--trials", "2", "--jobs", "1")
    order = [f"results/{BASE}/{leg}/{number}" for number in (1, 2) for leg in ("none", "frob", "norm")]
    assert [call["folder"] for call in calls(home)] == order
    expected = (
        f"--data cifar10 --arch resnet20 --device auto --weight-decay 1E-4 --rank-scale 0.111 --seed 2 --save-dir "
        f"{order[5]} --spectral --wd2fd --no-frob --normalize {order[4]}/frobnorms.tensor --resume auto"
    )
    assert calls(home)[5]["argv"] == expected.split()
    assert "training" in (home / order[0] / "log.txt").read_text()
    output = capfd.readouterr().out
    assert f"finished: {NORM} 2  [2 of 2]" in output and output.endswith("all 2 trials are finished\n")
    left = [path.name for path in (home / "results" / ".sweep").rglob("*") if path.is_file()]
    assert left == ["changes.txt"]
    run("--only", NORM, "--trials", "2", "--jobs", "1")
    assert len(calls(home)) == 6


def test_jobs_share_the_cores(home, monkeypatch):
    monkeypatch.setattr("paper.clusters.cores", lambda: 6)
    monkeypatch.setattr("paper.clusters.gpus", lambda: [])
    run("--only", DENSE, "--jobs", "2", "--trials", "1")
    (call,) = calls(home)
    assert (call["OMP_NUM_THREADS"], call["CUDA_VISIBLE_DEVICES"]) == ("3", "")


def test_each_job_has_a_gpu_of_its_own(home, monkeypatch, tmp_path):
    monkeypatch.setattr("paper.clusters.gpus", lambda: ["4", "7"])
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    monkeypatch.setattr("paper.view.View.show", lambda *_: len(calls(home)) == 2 and (tmp_path / "go").touch())
    run("--only", DENSE, "--trials", "2")
    assert {call["CUDA_VISIBLE_DEVICES"] for call in calls(home)} == {"4", "7"}


def test_a_failed_run_is_listed_with_its_last_words_and_its_command(home, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "frob/1")
    with pytest.raises(RunError, match="1 of 2 trials are not finished"):
        run("--only", NORM, "--trials", "2")
    lines = capfd.readouterr().out.splitlines()
    at = lines.index(f"failed: {NORM} 1, in {home}/results/{BASE}/frob/1")
    assert lines[at + 1 : at + 4] == ["  | first line", f"  | training results/{BASE}/frob/1", "  | last words"]
    assert lines[at + 4].startswith("  command: cd pytorch_resnet_cifar10 && python trainer.py --data cifar10 ")
    assert lines[at + 4].endswith("--dump-frobnorms --resume auto")
    monkeypatch.delenv("FAIL")
    before = len(calls(home))
    run("--only", NORM, "--trials", "2")
    assert [call["folder"][-6:] for call in calls(home)[before:]] == ["frob/1", "norm/1"]


def test_ctrl_c_stops_the_runs_in_good_order_and_a_second_call_goes_on(home, tmp_path):
    environment = {**os.environ, "GO": str(tmp_path / "go"), "PYTHONPATH": str(REPOSITORY), "ROOT": str(home.parent)}
    program = (
        "import os, pathlib, sys; from lab.cli import launch; from paper import sweep, trial;"
        "sweep.ROOT = trial.ROOT = pathlib.Path(os.environ['ROOT']);"
        f"launch(lambda: sweep.main(['{RESNET.folder}', '--only', '{DENSE}', '--jobs', '2']), 'paper')"
    )
    # In a session of its own, all of which gets the signal, as at a terminal. What a shell runs in the background,
    # these tests perhaps, ignores interrupts and hands that on.
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(calls(home)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert errors == "paper: interrupted: the same command goes on where the runs were stopped\n"
    assert "stopping 2 trials" in output
    folders = [home / call["folder"] for call in calls(home)]
    assert all((folder / "saved").exists() and not (folder / "failed").exists() for folder in folders)
    run("--only", DENSE)  # GO is not set here
    assert all((folder / "results.json").exists() for folder in folders)
    assert len(calls(home)) == 5


def test_two_calls_never_run_one_setting_twice(home, monkeypatch, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ROOT": str(home.parent)}
    program = (
        "import os, pathlib; from paper import sweep, trial;"
        "sweep.ROOT = trial.ROOT = pathlib.Path(os.environ['ROOT']);"
        f"sweep.main(['{RESNET.folder}', '--only', 'cifar10-resnet*-scale_0.0-*', '--trials', '1'])"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)]
    assert [process.wait(timeout=100) for process in both] == [0, 0]
    folders = [call["folder"] for call in calls(home)]
    assert len(folders) == len(set(folders)) == 5


def test_what_another_process_runs_is_waited_for(home, monkeypatch):
    """A script, say, which holds the lock of the run's folder alone."""
    folder = home / "results/resnet44-cifar10/0.0/1E-4/reglr/1"
    lock = Lock(folder)
    shown = []

    def show(_, head, running):
        shown.append((head(), len([*running])))
        if len(shown) == 3:
            (folder / "results.json").write_text("{}")
            lock.release()

    monkeypatch.setattr("paper.view.View.show", show)
    run("--only", DENSE, "--trials", "1")
    assert shown[0][0].startswith("0 of 1 finished, 1 elsewhere;") and shown[0][1] == 0
    assert calls(home) == []


def test_a_dry_run_lists_and_writes_nothing(home, capfd):
    run("--only", NORM, "--trials", "2", "--dry-run")
    *lines, last = capfd.readouterr().out.splitlines()
    assert lines == [f"not started  {NORM} {number}" for number in (1, 2)]
    assert last == "2 trials of 1 settings: 2 not started"
    assert not (home / "results").exists()


def test_changes_reach_the_training_programs(home):
    run("--only", DENSE, "--trials", "1", "--results", "r", "--set", "weight-decay=0.5", "--set", "data=digits",
        "--set", "compile", "--set", "epochs=2")  # fmt: skip
    (call,) = calls(home)
    expected = "--data digits --arch resnet44 --device auto --weight-decay 0.5 --rank-scale 0.0 --seed 1"
    folder = "r/resnet44-cifar10/0.0/1E-4/reglr/1"
    assert call["argv"] == f"{expected} --save-dir {folder} --compile --epochs 2 --resume auto".split()
    with pytest.raises(UserError, match="weight-decay=0.5 --set data=digits --set compile .*use another"):
        run("--only", DENSE, "--results", "r", "--set", "epochs=3")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "argument STUDY: invalid choice: 'nothing'"),
        ([RESNET.folder, "--only", DENSE[:-1]], f"no setting with a name like {DENSE[:-1]}; did you mean {DENSE}?"),
        ([RESNET.folder, "--trials", "0"], "--trials: must be an integer at least 1, not 0"),
        ([RESNET.folder, "--jobs", "-1"], "--jobs: must be an integer at least 1, not -1"),
        ([RESNET.folder, "--cluster", "grid"], "--cluster: invalid choice: 'grid'"),
        ([RESNET.folder, "--partition", "gpu"], "--partition has no effect without --cluster slurm"),
        ([RESNET.folder, "--sbatch", "a=b"], "--sbatch has no effect without --cluster slurm"),
        ([RESNET.folder, "--set", "epochs=1"], "say with --results DIR where their results belong"),
        ([RESNET.folder, "--results", "r", "--set", "=1"], "--set =1: give NAME=VALUE"),
        ([RESNET.folder, "--results", "r", "--set", "epochs="], "--set epochs=: give NAME=VALUE"),
        ([RESNET.folder, "--results", "r", "--set", "lr=1", "--set=--lr=2"], "--set names lr twice"),
        ([RESNET.folder, "--results", "r", "--set", "save-dir=x"], "--set save-dir: this flag is chosen for each run"),
        ([RESNET.folder, "--results", "r", "--set", "seed=1"], "--set seed: this flag is chosen"),
        ([RESNET.folder, "--results", "r", "--set", "resume=x"], "--set resume: this flag is chosen"),
        (["EigenDamage-Pytorch", "--results", "r", "--set", "save-dir=x"], "--set save-dir: this flag is chosen"),
        ([RESNET.folder, "--results", "r", "--set", "nonsense=1"], "--set: trainer.py: error: unrecognized .*nonsense"),
        ([RESNET.folder, "--results", "/dev/null/r"], "cannot write into /dev/null/r"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(home, argv, message):
    with pytest.raises(UserError, match=message):
        sweep.main(argv)
    assert calls(home) == [] and not (home / "results").exists() and not (home / "r").exists()


def test_without_submitit_the_message_says_how_to_install_it(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="needs the package submitit: pip install"):
        run()


def test_without_slurm_the_message_says_so(home, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no Slurm here"):
        run("--cluster", "slurm")


def test_what_was_done_before_counts_as_work_and_not_as_speed(home, monkeypatch, tmp_path):
    """Of three trials two are half done before; where one has failed, the time that is left is that of the others."""
    for number in (1, 2):
        folder = home / f"results/resnet44-cifar10/0.0/1E-4/reglr/{number}"
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text('{"done": 5, "total": 10, "unit": "epochs", "rate": 1.0}')
    settings = sweep.select(RESNET, RESNET.settings, DENSE)
    trials = [Trial(RESNET, settings[0], number, "results") for number in (1, 2, 3)]
    queue = dispatch.Sweep(trials, StandIn(), View())
    assert queue.share() == pytest.approx(1 / 3)
    monkeypatch.setattr("paper.dispatch.time.monotonic", lambda: queue._started + 30)
    assert queue.head() == "0 of 3 finished; 33.3 % of the work, 30 s"
    queue.active = {"a": queue.waiting.popleft(), "b": queue.waiting.popleft(), "c": queue.waiting.popleft()}
    queue.ended[queue.active.pop("b")] = "failed"
    (home / "results/resnet44-cifar10/0.0/1E-4/reglr/1/progress.json").write_text(
        '{"done": 8, "total": 10, "unit": "epochs", "rate": 1.0}'
    )
    # A tenth of the work in 30 s; 0.2 and 1 of the trials are left, which are four tenths of it.
    assert queue.head() == (
        "0 of 3 finished, 1 running, 1 queued (Priority), 1 failed; 43.3 % of the work, 30 s, about 2 min left"
    )


class StandIn:
    """A cluster in which the job c has not begun."""

    def waiting(self, handle: str) -> str | None:
        return "Priority" if handle == "c" else None


def test_a_flag_without_effect_is_refused(home):
    with pytest.raises(UserError, match="--additions has no effect with --quick"):
        run("--quick", "--additions", "--dry-run")
