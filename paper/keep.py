"""Keep finished runs in the repository: one small file for each, with its results, arguments and curves, no weights.

    python -m paper keep /tmp/runs/resnet20 --to results/resnet20      # all finished runs in it
    python -m paper keep pytorch_resnet_cifar10/results/example

Tables and figures are made of these records as they are made of runs.
"""

import json
import math
from pathlib import Path
from typing import Any

from lab.checkpoint import write_whole
from lab.cli import Parser, UserError, launch

from .cells import metric_curve
from .events import Curves, mean_over_layers
from .finished import Run, portable
from .reading import FORMAT, Unreadable, read_record
from .results import warn_of
from .runs import RECORDS, find
from .scripts import ROOT

# Published tags that hold what a tag of all studies holds, too.
_TWICE = {
    "train/acc", "valid/acc", "test/acc", "test/loss", "train/lr", "learning_rate", "train_loss", "train_top1",
    "val_loss", "val_top1",
}  # fmt: skip
_DIGITS = 5  # of the values of curves


def record_of(run: Run) -> dict[str, Any]:
    """Return what is kept of a run: plain data, in which no path leads into this machine's folders."""
    record = {
        "record": FORMAT,
        "name": run.name,
        "setting": run.setting,
        "results": portable(dict(run.results)),
        "arguments": portable(dict(run.arguments)),
        "curves": _grouped(run.curves),
    }
    return {**record, "evaluation": portable(dict(run.evaluation))} if run.evaluation else record


def _grouped(curves: Curves) -> list[dict]:
    """Return the curves by the steps that they have in common, rounded; values that are not finite are left out."""
    groups: dict[tuple[int, ...], dict[str, list[float]]] = {}
    for tag, (steps, values) in sorted(mean_over_layers(curves).items()):
        finite = [(step, value) for step, value in zip(steps, values) if math.isfinite(value)]
        if tag not in _TWICE and finite:
            key = tuple(step for step, _ in finite)
            groups.setdefault(key, {})[tag] = [float(f"{value:.{_DIGITS}g}") for _, value in finite]
    return [{"steps": list(steps), "values": values} for steps, values in groups.items()]


def text_of(record: dict[str, Any]) -> str:
    """Return a record as JSON with one line for each field and each curve, so that changes of it can be read."""

    def lines(value: Any, depth: int) -> str:
        inner = value.values() if isinstance(value, dict) else value
        nested = isinstance(value, dict | list) and any(isinstance(item, dict | list) for item in inner)
        if not value or not nested and (depth > 2 or not isinstance(value, dict)):
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        begin = ",\n" + "  " * depth
        if isinstance(value, dict):
            parts = [f"{json.dumps(key, ensure_ascii=False)}: {lines(item, depth + 1)}" for key, item in value.items()]
        else:
            parts = [lines(item, depth + 1) for item in value]
        first, last = ("{", "}") if isinstance(value, dict) else ("[", "]")
        return first + begin[1:] + begin.join(parts) + begin[1:-2] + last

    return lines(record, 1) + "\n"


def targets(paths: list[Path], to: Path | None) -> tuple[dict[Path, Run], list[str]]:
    """Return the runs by the files that their records go to, and what is to be said of others.

    Args:
        paths: folders of runs, or folders that have runs in them at any depth.
        to: folder of the records, by default one in `results/` for the network and the data.

    Raises:
        UserError: if there is no finished run, or two would have the same file.
    """
    chosen: dict[Path, Run] = {}
    said: list[str] = []
    for path in paths:
        found = find([path])
        warn_of(found, said.append)
        said += [f"not kept, as it is {run.state}: {run.path}" for run in found.unfinished]
        for run in found.runs:
            if run.path.is_file():
                raise UserError(f"{run.path} is a record already; name the folder of a run")
            if not run.arguments:
                raise UserError(f"{run.path} has no args.json, which says what was run")
            folder = to or ROOT / RECORDS / f"{run.results['network']}-{run.data}".replace(" ", "-").replace("/", "-")
            target = folder / f"{_file_name(run.path, path)}.json"
            other = chosen.get(target)
            if other is not None and other.path.resolve() != run.path.resolve():
                raise UserError(f"{other.path} and {run.path} would both be {target}; keep them one by one with --to")
            chosen[target] = run
    if not chosen:
        raise UserError("; ".join(said) or f"there is no finished run in {', '.join(map(str, paths))}")
    return chosen, said


def _file_name(folder: Path, asked: Path) -> str:
    """Return the path from the folder that was asked for, but at least the run's own last two parts."""
    parts = folder.resolve().parts
    below = len(parts) - len(asked.resolve().parts)
    return "-".join(part.lstrip("/") for part in parts[-max(2, below) :]).replace(" ", "-").lstrip("-.")


def check_free(target: Path, run: Run) -> None:
    """Raise UserError if the file is there and holds another run than this one."""
    if not target.exists():
        return
    try:
        old = read_record(target)
    except Unreadable as error:
        raise UserError(f"{target} {error}; move it away") from None
    ours = portable(dict(run.arguments))
    differing = [name for name in ours if old.arguments.get(name, ours[name]) != ours[name]]
    if differing and old.identity != run.identity:
        name = differing[0]
        raise UserError(
            f"{target} is of a run with {name} {old.arguments.get(name)}, not {ours[name]}; "
            "keep this one elsewhere with --to"
        )


def _missing(run: Run) -> str:
    """Return what is missing of the run's curves, "" if nothing is; a damaged event file is read up to the damage."""
    if not run.curves:
        return "without curves, as the run has no events"
    (trained, _), epochs = metric_curve(run), run.results["epochs"]
    if max(trained, default=0) < epochs:
        return f"with curves that do not reach the last of {epochs} epochs, as events are lost or damaged"
    return ""


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m paper keep", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of many")
    parser.add_argument("--to", type=Path, metavar="DIR", help=f"default: {RECORDS}/NETWORK-DATA of the repository")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the records that the command line asks for: all that can be wrong is found before the first is written."""
    args = build_parser().parse_args(argv)
    if args.to and args.to.exists() and not args.to.is_dir():
        raise UserError(f"--to {args.to} is a file; records go into a folder")
    chosen, said = targets(args.runs, args.to)
    for target, run in chosen.items():
        check_free(target, run)
    texts = {target: text_of(record_of(run)) for target, run in chosen.items()}
    for target, text in texts.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from None
    for line in said:
        print(line)
    for target, run in chosen.items():
        if missing := _missing(run):
            print(f"{missing}: {target}")
    size = sum(map(len, texts.values())) / len(texts) / 1000
    print(f"kept {len(chosen)} runs in {', '.join(sorted({str(t.parent) for t in chosen}))}, {size:.0f} kB each")


if __name__ == "__main__":
    launch(main, "python -m paper keep")
