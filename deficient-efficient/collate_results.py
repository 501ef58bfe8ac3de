"""Collect what the runs below some folders led to, as a table and in one JSON file.

    python collate_results.py results --out collated.json

A run's folder is known by its `args.json` and checkpoint. Every entry of the file is named after the folder and has
`epoch`, `val_errors`, `train_errors`, `no_params`, `flops`, `settings` (student, class of convolutions with its
hyper-parameter or target ratio, decay and start) and `scatter` (parameters, last validation error, last training error,
epoch, multiply-adds).
"""

import dataclasses
import json
import math
import sys
from pathlib import Path

from lab.cli import Parser, UserError, launch

# isort: split
from deficient.counting import multiply_adds
from deficient.darts import DARTS
from deficient.networks import Config, skeleton
from deficient.teacher import CHECKPOINT

from factorized import parameter_count
from lab import checkpoint


def collate(folder: Path, module: str | None = None) -> dict | None:
    """Return the entry of one run, or None if its convolutions are in a Python file that was not given.

    Args:
        module: the file. One that only the checkpoint names is never run.

    Raises:
        UserError: if its files are not those of a run of `main.py`.
    """
    try:
        args = json.loads((folder / "args.json").read_text())
        state = checkpoint.load(folder / CHECKPOINT)
        config = Config.from_dict(state["config"])
        if config.conv is None:
            if module is None:
                missing = f"--module {config.module}, the file of its convolutions, is not given"
                print(f"{folder} is left out: {missing}", file=sys.stderr)
                return None
            config = dataclasses.replace(config, module=module)
        model = skeleton(config)
        epoch = state["epoch"]
        val_errors, train_errors = (_numbers(state["history"], name) for name in ("val_errors", "train_errors"))
        if not isinstance(epoch, int):
            raise ValueError(f"its epoch is {epoch!r}")
        method = args["conv"] or args["module"]
        ratio = args["target_ratio"] or args["rank_scale"] or None
        decay = "reglr" if args["nocrswd"] else "crs"
        if args["wd2fd"]:
            decay = "frob"
        settings = {"student": args["mode"] == "student", "method": method, "setting": ratio, "decay": decay}
        settings |= {"spectral": args["spectral"], "seed": args["seed"]}
        size = 224 if args["dataset"] == "imagenet" else 32
    except UserError:
        raise
    except Exception as error:  # what is of another shape can fail in any way
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UserError(f"{folder} is not a run of main.py ({type(error).__name__}: {reason})") from None
    parameters = parameter_count(model)
    if isinstance(model, DARTS):
        model.auxiliary_head = None
    flops = multiply_adds(model, size).total
    return {
        "epoch": epoch,
        "val_errors": val_errors,
        "train_errors": train_errors,
        "no_params": parameters,
        "flops": flops,
        "settings": settings,
        "scatter": [parameters, val_errors[-1], train_errors[-1], epoch, flops],
        "command": args,
    }


def _numbers(history: dict, name: str) -> list[float]:
    numbers = history[name]
    if not isinstance(numbers, list) or not numbers:
        raise ValueError(f"its {name} are no list of numbers")
    for number in numbers:
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"its {name} hold {str(number)[:20]}")
    return numbers


def find_runs(folders: list[Path]) -> list[Path]:
    """Return the folders of runs in and below `folders`, sorted.

    Raises:
        UserError: if there is none.
    """
    found = {path.parent for folder in folders for path in folder.rglob(CHECKPOINT)}
    runs = sorted(path for path in found if (path / "args.json").is_file())
    if not runs:
        raise UserError(f"no runs of main.py in {', '.join(map(str, folders))}")
    return runs


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="collate_results.py", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders with runs in or below them")
    parser.add_argument("--out", type=Path, default=Path("collated.json"), metavar="FILE", help="gets the results")
    parser.add_argument("--match", default="", metavar="TEXT", help="only runs with this in the name of their folder")
    parser.add_argument("--module", metavar="FILE", help="Python file, which is run: the convolutions of some runs")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Collect the runs that the command line names."""
    args = build_parser().parse_args(argv)
    folders = [folder for folder in find_runs(args.folders) if args.match in str(folder)]
    entries = {str(folder): entry for folder in folders if (entry := collate(folder, args.module))}
    if not folders:
        raise UserError(f"no run has {args.match} in the name of its folder")
    try:
        checkpoint.save_json(args.out, entries)
    except OSError as error:
        raise UserError(f"cannot write {args.out}: {error.strerror}") from None
    print(f"{'epoch':>5} {'error %':>8} {'parameters':>12} {'mult-adds':>10}  run")
    for name, entry in entries.items():
        error = entry["val_errors"][-1]
        print(f"{entry['epoch']:5} {error:8.2f} {entry['no_params']:12,} {entry['flops']:10.3E}  {name}")


if __name__ == "__main__":
    launch(main, "collate_results.py")
