"""Write the paper's settings as bash scripts into */generated-scripts, with a manifest of what they run.

    python -m paper scripts               # all scripts
    python -m paper scripts --dry-run     # what would be written

The scripts can be started from anywhere and started again: a finished run is skipped, an interrupted one resumed.
"""

import heapq
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from string import Template

from lab import ROOT
from lab.checkpoint import write_whole
from lab.cli import Parser, UserError, launch, number

from .setting import Setting, Study
from .studies import STUDIES

FOLDER = "generated-scripts"
WRITER = "python -m paper scripts"
MARK = f"#!/usr/bin/env bash\n# Written by {WRITER}"
DEVICES = 10_000  # more than there are settings, so that each gets its own script


@dataclass(frozen=True)
class Slot:
    """The share of one device: one script."""

    number: int
    name: str
    jobs: tuple[tuple[Setting, tuple[int, ...]], ...]
    """Settings with their trials, in the order in which they run."""

    @property
    def minutes(self) -> int:
        """What packing balances: the estimates of the paper's generator, of a machine that it does not name."""
        return sum(setting.minutes * len(trials) for setting, trials in self.jobs)

    @property
    def runs(self) -> int:
        """The training runs of the script."""
        return sum(setting.runs * len(trials) for setting, trials in self.jobs)

    @property
    def script(self) -> str:
        return f"{self.name}.sh"


def pack(
    settings: Iterable[Setting],
    trials: int = 3,
    devices: int = DEVICES,
    one_trial: bool = False,
    longest_first: bool = False,
) -> list[Slot]:
    """Give each setting (with `one_trial` each trial) to the least loaded of the devices; return those with work."""
    every = tuple(range(1, trials + 1))
    loads = [(0, device) for device in range(devices)]
    placed: dict[int, list] = {}
    for setting in sorted(settings, key=lambda setting: setting.minutes, reverse=longest_first):
        for share in [(trial,) for trial in every] if one_trial else [every]:
            minutes, device = heapq.heappop(loads)
            heapq.heappush(loads, (minutes + setting.minutes * len(share), device))
            placed.setdefault(device, []).append((setting, share))
    slots = []
    for device, jobs in sorted(placed.items()):
        setting, share = jobs[0]
        if len(jobs) > 1:
            name = f"slot_{device}"
        else:
            name = f"{setting.name}--{share[0]}" if one_trial else setting.name
        slots.append(Slot(device, name, tuple(reversed(jobs) if longest_first else jobs)))
    return slots


def values(setting: Setting, trial: int, results: str) -> dict[str, str]:
    """Return the values of the variables in one trial of a setting, but for the device, which the script chooses."""
    found = {"RESULTS": results, "TRIAL": str(trial)}
    for name, value in setting.variables:
        found[name] = Template(value).substitute(found)
    return found


def markers(setting: Setting, trials: Iterable[int], results: str) -> list[str]:
    """Return the files that mark the setting's commands as finished, relative to the study's folder."""
    return [
        Template(command.done).substitute(values(setting, trial, results))
        for trial in trials
        for command in setting.commands
    ]


def _quote(token: str) -> str:
    """Return the token as bash text in which only the variables are expanded."""
    if "$" not in token:
        return shlex.quote(token)
    return '"' + re.sub(r'(["`\\])', r"\\\1", token) + '"'


def script_text(study: Study, slot: Slot, results: str, gpu: str, root: str | None = None) -> str:
    """Return the text of one script; `root` is the repository, by default two folders above the script."""
    contents = [f"#   {setting.name}, trials {' '.join(map(str, trials))}" for setting, trials in slot.jobs]
    above = """$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)"""
    lines = [
        f"{MARK}, which overwrites changes. Runs, in this order:",
        *contents,
        "set -euo pipefail",
        f"ROOT={shlex.quote(root) if root else above}",
        f'cd -- "$ROOT/{study.folder}"',
        'source "$ROOT/paper/scripts.sh"',
        f"GPU=${{GPU:-{gpu}}}",
        f"RESULTS=${{RESULTS:-{shlex.quote(results)}}}",
    ]
    for setting, trials in slot.jobs:
        lines += ["", f"for TRIAL in {' '.join(map(str, trials))}; do"]
        lines += [f"  {name}={_quote(value)}" for name, value in setting.variables]
        for command in setting.commands:
            tokens = ["  run", *map(_quote, [command.done, *study.argv(command)])]
            lines.append(" ".join(tokens + ['"$@"'] if command.training else tokens))
        lines.append("done")
    return "\n".join(lines) + "\n"


def manifest(study: Study, slots: Iterable[Slot], results: str) -> dict:
    """Return what the scripts run, as plain data."""
    jobs = []
    for slot in slots:
        for setting, trials in slot.jobs:
            finished_by = markers(setting, trials, results)
            jobs.append(
                {
                    "script": slot.script,
                    "name": setting.name,
                    "minutes": setting.minutes,
                    "trials": list(trials),
                    "variables": dict(setting.variables),
                    "commands": [study.argv(command) for command in setting.commands],
                    "folders": list(dict.fromkeys(map(os.path.dirname, finished_by))),
                    "finished_by": finished_by,
                }
            )
    return {"written_by": WRITER, "study": study.folder, "jobs": jobs}


def read_manifest(folder: Path) -> list[dict]:
    """Return the jobs in the manifest of an earlier call, none if there is no manifest."""
    path = folder / "manifest.json"
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["written_by"] == WRITER:
            return content["jobs"]
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} was not written by this program; move it away")


def _write(path: Path, text: str, mode: int) -> None:
    write_whole(path, lambda file: file.write(text.encode()))
    path.chmod(mode)


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(MARK)


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"two settings have the same {what}: {', '.join(repeated)}")


def write(
    study: Study,
    slots: list[Slot],
    folder: Path,
    results: str,
    gpus: int | None = None,
    *,
    keep: bool = False,
    dry_run: bool = False,
) -> str:
    """Write the scripts and their manifest into `folder`, and return one line that says what was done.

    Args:
        gpus: the slots go to so many GPUs in turn; None lets the programs choose the device.
        keep: scripts of an earlier call stay, and so do their lines in the manifest; otherwise they are removed.
        dry_run: only print what would be written.

    Raises:
        UserError: if two scripts or results would have the same name, or a file is in the way. Nothing is written then.
    """
    content = manifest(study, slots, results)
    _refuse_repeats("script", (slot.script for slot in slots))
    _refuse_repeats("result file", (path for job in content["jobs"] for path in job["finished_by"]))
    wanted = {slot.script for slot in slots}
    for path in (folder / name for name in sorted(wanted)):
        if path.exists() and not _is_ours(path):
            raise UserError(f"{path} was not written by this program; move it away")
    earlier = read_manifest(folder)
    stale = sorted({os.path.basename(job["script"]) for job in earlier} - wanted)
    stale = [folder / name for name in stale if _is_ours(folder / name)]
    if keep:
        kept, stale = {path.name for path in stale}, []
        content["jobs"] = [job for job in earlier if job["script"] in kept] + content["jobs"]

    runs = sum(slot.runs for slot in slots)
    done = f"{study.folder}: {len(slots)} scripts for {runs} runs {'would be ' if dry_run else ''}written to {folder}"
    if dry_run:
        print("".join(f"  {slot.runs:3} runs  {slot.script}\n" for slot in slots), end="")
    else:
        root = None if folder == ROOT / study.folder / FOLDER else str(ROOT)
        folder.mkdir(parents=True, exist_ok=True)
        for slot in slots:
            gpu = str(slot.number % gpus) if gpus else "auto"
            _write(folder / slot.script, script_text(study, slot, results, gpu, root), 0o755)
        for path in stale:
            path.unlink()
        _write(folder / "manifest.json", json.dumps(content, indent=2) + "\n", 0o644)
    if stale:
        names = ", ".join([path.name for path in stale[:3]] + (["..."] if len(stale) > 3 else []))
        done += f"; {'would remove' if dry_run else 'removed'} {len(stale)} scripts of an earlier call: {names}"
    return done


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m paper scripts", description=__doc__.splitlines()[0])
    add, count = parser.add_argument, number(int, least=1)
    names = list(STUDIES)
    add("--study", nargs="+", choices=names, default=names, metavar="NAME", help=f"{', '.join(names)} (default: all)")
    add("--only", metavar="GLOB", default="*", help="only settings with such a name")
    add("--additions", action="store_true", help="also the settings that the paper's grid lacks")
    add("--trials", type=count, default=3, metavar="N", help="trials of each setting (default 3)")
    add("--devices", type=count, default=DEVICES, metavar="N", help="pack the work into N scripts (default: one each)")
    add("--one-trial", action="store_true", help="give out each trial on its own")
    add("--gpus", type=count, metavar="N", help="let the scripts take GPUs 0 to N-1 in turn (default: --device auto)")
    add("--results", default="results", metavar="DIR", help="results folder, relative to the folder of the study")
    add("--out", type=Path, metavar="DIR", help=f"write to DIR/STUDY/{FOLDER} (default: into the repository)")
    add("--dry-run", action="store_true", help="only list what would be written")
    add("--quiet", action="store_true", help="say nothing if all goes well")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the scripts that the command line asks for."""
    args = build_parser().parse_args(argv)
    found = False
    for study in (STUDIES[name] for name in dict.fromkeys(args.study)):
        if not (ROOT / study.folder).is_dir():
            raise UserError(f"there is no {ROOT / study.folder}; run this from a checkout of the repository")
        folder = (args.out.resolve() if args.out else ROOT) / study.folder / FOLDER
        everything = study.settings + (study.additions if args.additions else ())
        settings = [setting for setting in everything if fnmatchcase(setting.name, args.only)]
        if not settings:
            continue
        found = True
        slots = pack(settings, args.trials, args.devices, args.one_trial, study.longest_first)
        try:
            done = write(study, slots, folder, args.results, args.gpus, keep=args.only != "*", dry_run=args.dry_run)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None
        if not args.quiet:
            print(done)
    if not found:
        raise UserError(f"no setting has a name like {args.only}")


if __name__ == "__main__":
    launch(main, "python -m paper scripts")
