"""Sweeps on Slurm's own daemons, on this machine; skipped where they are not installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.cli import RunError, UserError
from paper import sweep
from paper.resnet import RESNET
from tests.paper.sweeping import BASE, DENSE, NORM, REPOSITORY, calls, make

pytest.importorskip("submitit")
_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
if not all(shutil.which(name, path=_PATH) for name in ("slurmctld", "slurmd", "munged", "sbatch", "srun")):
    pytest.skip("Slurm is not installed", allow_module_level=True)

SLURM = ["--cluster", "slurm", "--partition", "here", "--gpus", "0", "--cpus", "2"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    script, folder = str(REPOSITORY / "tests" / "paper" / "slurm.sh"), tmp_path_factory.mktemp("slurm")
    subprocess.run(["sh", script, "start", str(folder)], check=True, timeout=100)
    yield folder / "slurm.conf"
    subprocess.run(["sh", script, "stop", str(folder)], check=True, timeout=100)


@pytest.fixture
def home(tmp_path, monkeypatch, slurm) -> Path:
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    monkeypatch.setattr("paper.clusters.Slurm.seconds", 0.5)
    return make(tmp_path, monkeypatch)


def run(*argv: str) -> None:
    sweep.main([RESNET.folder, *SLURM, *argv])


def wait_for(condition) -> None:
    deadline = time.monotonic() + 300  # which only a failure waits for
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def squeue(form: str) -> list[str]:
    return subprocess.run(["squeue", "--noheader", "--array", f"--format={form}"], capture_output=True, text=True,
                          check=True).stdout.split()  # fmt: skip


def test_an_array_runs_the_trials_and_failed_ones_are_listed(home, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "frob/2")
    with pytest.raises(RunError, match="1 of 3 trials are not finished"):
        run("--only", NORM, "--jobs", "2")
    folders = {call["folder"] for call in calls(home)}
    assert len(calls(home)) == len(folders) == 8  # of nine: norm/2 needs frob/2
    assert {call["OMP_NUM_THREADS"] for call in calls(home)} == {"2"}
    lines = capfd.readouterr().out.splitlines()
    at = lines.index(f"failed: {NORM} 2, in {home}/results/{BASE}/frob/2")
    assert lines[at + 3] == "  | last words" and "python trainer.py" in lines[at + 4]
    monkeypatch.delenv("FAIL")
    run("--only", NORM)
    assert [call["folder"][-6:] for call in calls(home)[8:]] == ["frob/2", "norm/2"]
    left = {path.name for path in (home / "results" / ".sweep").rglob("*") if path.is_file()}
    assert not {name for name in left if name.endswith((".pkl", ".out"))}


def start(home: Path, *argv: str, **environment: str) -> subprocess.Popen:
    """Start a sweep in a process of its own."""
    program = (
        "import os, pathlib; from lab.cli import launch; from paper import clusters, sweep, trial, view;"
        "sweep.ROOT = trial.ROOT = pathlib.Path(os.environ['ROOT']); clusters.Slurm.seconds = 0.5;"
        "view._PULSE = int(os.environ.get('PULSE', 60));"
        f"launch(lambda: sweep.main({[RESNET.folder, *SLURM, *argv]}), 'paper')"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ROOT": str(home.parent), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_ctrl_c_cancels_the_array_in_good_order_and_a_second_call_goes_on(home, tmp_path):
    process = start(home, "--only", DENSE, "--jobs", "2", GO=str(tmp_path / "go"))
    wait_for(lambda: process.poll() is not None or len(calls(home)) == 2)
    assert len(squeue("%i")) == 3
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "paper: interrupted: the same command goes on where the runs were stopped\n"
    assert all((home / call["folder"] / "saved").exists() for call in calls(home))
    assert squeue("%i") == []
    run("--only", DENSE)  # GO is not set here
    assert len(calls(home)) == 5


def start_now(job: str) -> bool:
    """Let Slurm forget that a job which has been put back into the queue is to wait for two minutes."""
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
    return True


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_on_in_another(home, tmp_path):
    """What Slurm does then, and before it takes a node away, is to send the signal that is sent here."""
    process = start(home, "--only", DENSE, "--trials", "1", GO=str(tmp_path / "go"))
    wait_for(lambda: len(calls(home)) == 1)
    time.sleep(1)
    (job,) = squeue("%i")
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    wait_for(lambda: squeue("%T") == ["PENDING"])
    wait_for(lambda: start_now(job) and len(calls(home)) == 2)
    assert squeue("%i %T") == [job, "RUNNING"]
    (tmp_path / "go").touch()
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert "all 1 trials are finished" in output
    assert (home / calls(home)[0]["folder"] / "saved").exists()


@pytest.mark.slow
def test_each_trial_has_as_many_gpus_as_it_is_to_have(home, tmp_path):
    """Of the two that the node has; no trial shares one with another that runs at the same time."""
    process = start(home, "--only", DENSE, "--gpus", "1", "--cpus", "1", GO=str(tmp_path / "go"))
    wait_for(lambda: process.poll() is not None or len(calls(home)) == 2)
    assert sorted(call["CUDA_VISIBLE_DEVICES"] for call in calls(home)) == ["0", "1"]
    assert sorted(squeue("%T")) == ["PENDING", "RUNNING", "RUNNING"]  # the third waits for no core, as there are eight
    (tmp_path / "go").touch()
    assert process.wait(timeout=60) == 0
    assert len(calls(home)) == 3 and calls(home)[2]["CUDA_VISIBLE_DEVICES"] in ("0", "1")


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "got"), [("0", None), ("2", "0,1")])
def test_a_trial_may_have_no_gpu_or_all_of_a_node(home, monkeypatch, asked, got):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run("--only", DENSE, "--trials", "2", "--gpus", asked)
    assert [call["CUDA_VISIBLE_DEVICES"] for call in calls(home)] == [got] * 2


@pytest.mark.slow
def test_why_trials_are_not_begun_is_said(home):
    """Slurm takes jobs that no node of the partition has the cores for, and keeps them in its queue."""
    process = start(home, "--only", DENSE, "--cpus", "9", PULSE="0")
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert next(line for line in lines if "queued (" in line).startswith(
        "0 of 3 finished, 3 queued (PartitionConfig); 0.0 % of the work, "
    )
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert squeue("%i") == []


@pytest.mark.parametrize(("flag", "value"), [("--gpus", "3"), ("--memory", "100000")])
def test_more_than_a_node_has_is_refused_in_one_line(home, flag, value):
    with pytest.raises(UserError, match=r"does not take the jobs: .* is not available; `sinfo .*` lists [^\n]*$"):
        run("--only", DENSE, flag, value)
    assert calls(home) == []


def test_a_folder_whose_name_slurm_reads_as_something_else_is_refused(home, tmp_path):
    with pytest.raises(UserError, match="50%j/.sweep: Slurm reads a % in names"):
        run("--only", DENSE, "--results", str(tmp_path / "50%j"))
    assert not (tmp_path / "50%j").exists()


def test_what_slurm_refuses_is_said_in_one_line(home):
    with pytest.raises(UserError, match="does not take the jobs: Invalid --mail-type specification$"):
        run("--only", DENSE, "--sbatch", "mail-type=nobody")
    with pytest.raises(UserError, match="Slurm does not take the jobs: Batch job submission failed: Invalid partition"):
        run("--only", DENSE, "--partition", "nowhere")
    assert calls(home) == []
