"""Run settings of a study, on this machine or on a Slurm cluster.

    python -m paper run pytorch_resnet_cifar10 --only 'cifar10-resnet32-*' --trials 3
    python -m paper run EigenDamage-Pytorch --cluster slurm --partition gpu --time 240

Runs lie where the generated scripts leave them, and a second call goes on where the first one ended: what is finished
is skipped, what was interrupted resumes.
"""

import argparse
import difflib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path

from lab.checkpoint import write_whole
from lab.cli import Parser, RunError, UserError, launch, number, printable
from lab.lock import Lock

from .clusters import Local, Slurm, gpus
from .dispatch import Sweep
from .quick import QUICK, Quick
from .scripts import ROOT
from .setting import Command, Setting, Study
from .studies import STUDIES
from .trial import HIDDEN, Trial
from .view import View
from .warm import interpreter

# Flags by which each run has a folder and a seed of its own, by all names that programs have for them.
_OWN = {"save-dir", "log-dir", "teacher-checkpoint", "seed", "device", "GPU", "device-id", "resume", "overwrite"}


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m paper run", description=__doc__.splitlines()[0])
    add, count, positive = parser.add_argument, number(int, least=0), number(int, least=1)
    # fmt: off
    add("study", choices=list(STUDIES), metavar="STUDY", help=", ".join(STUDIES))
    add("--only", metavar="GLOB", default="*", help="only settings with such a name")
    add("--additions", action="store_true", help="also the settings that the paper's grid lacks")
    add("--trials", type=positive, metavar="N", help="trials of each setting (default 3, with --quick 1)")
    add("--quick", action="store_true", help="all methods on small data for few epochs: less than an hour a study "
        "on two cores")
    add("--set", action="append", default=[], metavar="FLAG=VALUE", dest="changes",
        help="another value of a flag of the training programs; FLAG alone for a switch. Needs --results")
    add("--results", metavar="DIR", help="results folder, relative to the folder of the study (default results, with "
        "--quick results/quick)")
    add("--dry-run", action="store_true", help="only list what would be run")
    add("--cluster", choices=("local", "slurm"), default="local", help="this machine (default), or Slurm's queue")
    add("--jobs", type=positive, default=0, metavar="N", help="trials at a time (default: one on each GPU, without one "
        "on each core; slurm: as many as it likes)")
    slurm = parser.add_argument_group("with --cluster slurm")
    add = slurm.add_argument
    add("--partition", metavar="NAME", help="where to run")
    add("--time", type=positive, metavar="MINUTES", help="of a job (default 240); a run that takes longer goes on in "
        "the next one")
    add("--gpus", type=count, metavar="N", help="for each trial (default 1)")
    add("--cpus", type=positive, metavar="N", help="cores for each trial (default 4)")
    add("--memory", type=positive, metavar="GB", help="for each trial (default: that of the cluster)")
    add("--sbatch", action="append", default=[], metavar="NAME=VALUE", help="any other option of sbatch, such as "
        "account=NAME")
    # fmt: on
    return parser


# The options of sbatch by the names of the flags.
SLURM = {"partition": "partition", "time": "time", "gpus": "gpus_per_node", "cpus": "cpus_per_task", "memory": "mem"}


def pairs(flag: str, texts: list[str]) -> dict[str, str]:
    """Return the values by name in texts like NAME=VALUE; "" where there is no value.

    Raises:
        UserError: for a text without a name, or two for one name.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.lstrip("-")
        if not name or equals and not value:
            raise UserError(f"{flag} {text}: give NAME=VALUE, or NAME alone for a switch")
        if name in found:
            raise UserError(f"{flag} names {name} twice: give it once")
        found[name] = value
    return found


def select(study: Study, everything: Sequence[Setting], only: str) -> list[Setting]:
    """Return the settings of such a name.

    Raises:
        UserError: if there is none.
    """
    chosen = [setting for setting in everything if fnmatchcase(setting.name, only)]
    if not chosen:
        close = difflib.get_close_matches(only, [setting.name for setting in everything], n=1, cutoff=0.4)
        near = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{study.folder} has no setting with a name like {only}{near}")
    return chosen


def changed(study: Study, settings: list[Setting], changes: dict[str, str]) -> list[Setting]:
    """Return the settings with other values of flags in their training commands.

    Raises:
        UserError: if a flag is the sweep's to choose, or the program does not take it.
    """
    for setting in settings[:1]:
        for command in setting.commands:
            for name in changes if command.training else ():
                at = Command.position(name, command.argv)
                fixed = any(word in token for token in command.argv[at : at + 2] for word in ("LOGDIR", "TRIAL", "GPU"))
                if fixed or f"--{name}" in study.resume or name.replace("_", "-") in _OWN:
                    raise UserError(f"--set {name}: this flag is chosen for each run by the sweep itself")
    new = [setting.with_flags(changes) for setting in settings]
    if changes:
        _try_out(Trial(study, new[0], 1, "results"))
    return new


def _try_out(trial: Trial) -> None:
    """Let the training program read its flags, and no more.

    Raises:
        UserError: with what it says against them.
    """
    command = next(command for command in trial.setting.commands if command.training)
    done = _python(trial.home, [*trial.argv(command), "--help"])
    if done.returncode:
        raise UserError(f"--set: {_last_line(done)}")


def _python(folder: Path, argv: Sequence[str]) -> subprocess.CompletedProcess:
    """Run a program of a study's folder to its end."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True)


def _last_line(done: subprocess.CompletedProcess) -> str:
    return (done.stderr.strip().splitlines() or [f"status {done.returncode} without a word"])[-1]


def note_changes(home: Path, changes: dict[str, str]) -> None:
    """Note in a folder with which changes the runs among the same results are made.

    Raises:
        UserError: if earlier ones were made with others.
        OSError: if the folder cannot be written.
    """
    path = home / "changes.txt"
    text = " ".join(f"--set {name}={value}".removesuffix("=") for name, value in changes.items()) or "no --set"
    home.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_whole(path, lambda file: file.write(f"{text}\n".encode()))
    elif (old := path.read_text(encoding="utf-8", errors="replace").strip()) != text:
        raise UserError(f"the runs there were made with {printable(old)}, as {path} says: use another --results")


def main(argv: list[str] | None = None) -> None:
    """Run what the command line names."""
    args = build_parser().parse_args(argv)
    study = STUDIES[args.study]
    changes = pairs("--set", args.changes)
    if changes and not args.results:
        raise UserError("--set changes the runs, so say with --results DIR where their results belong")
    if args.quick and args.additions:
        raise UserError("--additions has no effect with --quick, which has settings of the paper's grid alone")
    quick = QUICK[study.folder] if args.quick else None
    whole = study.settings + (study.additions if args.additions else ())
    everything = quick.settings(study) if quick else whole
    settings = changed(study, select(study, everything, args.only), changes)
    results = args.results or ("results/quick" if quick else "results")
    settings.sort(key=lambda setting: setting.minutes, reverse=study.longest_first)
    trials = [
        Trial(study, setting, n, results)
        for n in range(1, (args.trials or (1 if quick else 3)) + 1)
        for setting in settings
    ]
    if args.dry_run:
        states = Counter(trial.state() for trial in trials)
        for trial in trials:
            print(f"{trial.state():12} {trial}")
        print(f"{len(trials)} trials of {len(settings)} settings: " + ", ".join(f"{n} {s}" for s, n in states.items()))
        return
    folder = ROOT / study.folder / results
    try:
        cluster = make_cluster(args, folder / HIDDEN)
        note_changes(folder / HIDDEN / study.folder, {**({"quick": ""} if quick else {}), **changes})
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; use another --results") from None
    if quick:
        prepare(study, quick)
    view = View()
    view.say(f"{len(trials)} trials of {len(settings)} settings, {cluster.words}; results in {folder}")
    sweep = Sweep(trials, cluster, view)
    # To import PyTorch takes longer than some quick runs train.
    warm = interpreter(cluster.threads) if quick and isinstance(cluster, Local) and not gpus() else nullcontext()
    with warm as python:
        sweep.run({"PYTHON": python or sys.executable})
    tell(sweep, view)


def prepare(study: Study, quick: Quick) -> None:
    """Make the data of a quick study, if that has some of its own and they are not there.

    Raises:
        UserError: if they cannot be made, or another process is making them.
    """
    home = ROOT / study.folder
    if not quick.prepare or (home / quick.prepared).exists():
        return
    lock = Lock((home / quick.prepared).parent)
    try:
        done = _python(home, quick.prepare)
    finally:
        lock.release()
    if done.returncode:
        raise UserError(f"cannot make the data of a quick run: {_last_line(done)}")


def make_cluster(args: argparse.Namespace, folder: Path) -> Local | Slurm:
    """Return where to run.

    Raises:
        UserError: for flags of another cluster; if submitit or Slurm is not there.
    """
    given = {name: getattr(args, name) for name in SLURM if getattr(args, name) is not None}
    if args.cluster == "local":
        for name in [*given, *["sbatch"] * bool(args.sbatch)]:
            raise UserError(f"--{name} has no effect without --cluster slurm")
        return Local(folder, args.jobs)
    defaults = {"time": 240, "gpus": 1, "cpus": 4}
    options = {SLURM[name]: value for name, value in {**defaults, **given}.items() if value}
    if args.memory:
        options["mem"] = f"{args.memory}GB"
    return Slurm(folder, args.jobs, {**options, "additional_parameters": pairs("--sbatch", args.sbatch)})


def tell(sweep: Sweep, view: View) -> None:
    """Say what has failed, and with which last words.

    Raises:
        RunError: if not all trials are finished.
    """
    bad = [trial for trial, outcome in sweep.ended.items() if outcome != "finished"]
    for trial in bad:
        for line in trial.failure() or [f"stopped: {trial}: {printable(sweep.ended[trial])}"]:
            view.say(line)
    if bad:
        raise RunError(
            f"{len(bad)} of {len(sweep.trials)} trials are not finished, see above; the same command tries them again"
        )
    view.say(f"all {len(sweep.trials)} trials are finished")


if __name__ == "__main__":
    launch(main, "python -m paper run")
