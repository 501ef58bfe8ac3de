"""What factorization does to a model, from the command line; `python -m factorized COMMAND --help` says how."""

import argparse
import copy
import difflib
import functools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

import factorized

from .calls import run
from .command_model import MODEL, Mistake, example_of, is_saved, model_of, size_of
from .deployment import deployed
from .forms import SPLITS
from .plan import ALLOCATIONS, COSTS
from .store_files import read
from .table import aligned

_CALLS = 15  # of a benchmark, after two that do not count

_OF_SIZE = ("ratio", "rank_scale")
_OF_FACTORIZING = ("cost", "allocate", "round_to", "split", "embeddings", "include", "exclude")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a mistake in it is one line on standard error and exit status 2."""
    args = _parser().parse_args(arguments)
    try:
        args.command(args)
    except (Mistake, ValueError, TypeError, ImportError, OSError) as error:
        _end(2, " ".join(str(error).split()))
    except KeyboardInterrupt:
        _end(130, "interrupted")


def _end(status: int, message: str) -> NoReturn:
    print(f"python -m factorized: {message}", file=sys.stderr)
    raise SystemExit(status)


def inspect(args: argparse.Namespace) -> None:
    """Print the table of a model's layers, factorized if a ratio or scale is given, or that of a saved folder."""
    if is_saved(args.model):
        if given := _given(args, (*_OF_SIZE, *_OF_FACTORIZING, "weights", "input")):
            raise Mistake(f"{args.model} is factorized already: leave {given} out")
        _print_saved(Path(args.model), args.json)
        return
    if not _given(args, _OF_SIZE) and (given := _given(args, _OF_FACTORIZING)):
        raise Mistake(f"without --ratio or --rank-scale there is no effect of {given}: give one of them")
    model = model_of(args)
    example = example_of(args, model)
    if _given(args, _OF_SIZE):
        model = _factorized(model, args, example)
    found = factorized.summary(model, example)
    print(json.dumps(found.as_dict()) if args.json else found)


def benchmark(args: argparse.Namespace) -> None:
    """Print what one call takes: dense, factorized along either path, and deployed."""
    dense = model_of(args).eval()
    example = example_of(args, dense)
    if example is None:
        raise Mistake("a benchmark needs the size of the input, as in --input 1x3x224x224")
    small = _factorized(copy.deepcopy(dense), args, example)
    models = {"dense": dense}
    for path in ("composed", "two_step"):
        models[path] = copy.deepcopy(small)
        for layer in factorized.factorized_modules(models[path]).values():
            if getattr(layer, "groups", 1) == 1 and hasattr(layer, "path"):
                layer.path = path  # type: ignore[assignment]
    models["deployed"], _ = deployed(small, example, measure=True)
    seconds = _medians({name: functools.partial(run, model, example) for name, model in models.items()})
    parameters = {name: factorized.parameter_count(model) for name, model in models.items()}
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "input": size_of(args)}
    if args.json:
        rows = {name: {"seconds": seconds[name], "parameters": parameters[name]} for name in models}
        print(json.dumps({"forms": rows, **machine}))
        return
    lines = [["form", "ms", "of dense", "parameters"]]
    for name in models:
        share = f"{seconds[name] / seconds['dense']:.2f}"
        lines.append([name, f"{1e3 * seconds[name]:.2f}", share, f"{parameters[name]:,}"])
    print("\n".join(aligned(lines, left=(0,))))
    print("medians of {} calls; {}".format(_CALLS, ", ".join(f"{key} {value}" for key, value in machine.items())))


def convert(args: argparse.Namespace) -> None:
    """Factorize a model and save it in a folder."""
    folder = Path(args.out)
    if folder.exists() and not args.overwrite:
        raise Mistake(f"{folder} exists: give another folder, or --overwrite if it holds a factorized model")
    model = model_of(args)
    example = example_of(args, model) if args.cost == "multiply-adds" else None
    model = _factorized(model, args, example)
    factorized.save(model, folder)
    found = factorized.summary(model)
    if args.json:
        print(json.dumps({"folder": str(folder), **found.as_dict()}))
    else:
        print(
            f"{found.closing_line}\n{folder} written: factorized.load(model, {str(folder)!r}), model from {args.model}"
        )


def _factorized(model: nn.Module, args: argparse.Namespace, example: torch.Tensor | None) -> nn.Module:
    options: dict[str, Any] = {
        "ratio": args.ratio, "rank_scale": args.rank_scale, "cost": args.cost, "allocate": args.allocate,
        "round_to": args.round_to, "split": args.split, "include": args.include, "exclude": args.exclude,
        "embeddings": args.embeddings,
    }  # fmt: skip
    if not _given(args, _OF_SIZE):
        raise Mistake("give --ratio, a share of the model as 0.25, or --rank-scale, a share of each layer's rank")
    if args.cost == "multiply-adds":
        options["example_input"] = example
    return factorized.factorize(model, **options)


def _given(args: argparse.Namespace, names: Sequence[str]) -> str:
    """Return those of the flags that have another value than their default, in words."""
    return ", ".join(f"--{name}".replace("_", "-") for name in names if getattr(args, name) != args.defaults[name])


def _medians(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of calls that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for turn in range(_CALLS + 2):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn > 1:
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _print_saved(folder: Path, as_json: bool) -> None:
    description, tensors = read(folder)
    rows = []
    for name, entry in description["structure"].items():
        prefix = f"{name}." if name else ""
        own = {key: value for key, value in tensors.items() if key.startswith(prefix)}
        count = sum(value.numel() for value in own.values())
        rows.append(
            {"name": name, "class": entry["class"], "rank": entry["rank"], "parameters": count, "path": entry["path"]}
        )
    total = sum(value.numel() for value in tensors.values())
    if as_json:
        print(json.dumps({"layers": rows, "numbers": total, "version": description["version"]}))
        return
    lines = [["layer", "class", "rank", "parameters", "path"]]
    lines += [[r["name"] or "(root)", r["class"], str(r["rank"]), f"{r['parameters']:,}", r["path"]] for r in rows]
    print("\n".join(aligned(lines, left=(0, 1, 4))))
    print(f"{len(rows)} factorized layers; {total:,} numbers in all; written by version {description['version']}")


def _parser() -> argparse.ArgumentParser:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            flags = [flag for command in commands.choices.values() for flag in command._option_string_actions]
            wrong = re.match(r"unrecognized arguments: (--[^ =]+)", message)
            close = difflib.get_close_matches(wrong[1].replace("_", "-"), flags, n=1) if wrong else []
            hint = f"; did you mean {close[0]}?" if close else ""
            _end(2, f"{message}{hint} ({self.prog} --help)")

    parser = Parser(prog="python -m factorized", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="inspect|benchmark|convert", parser_class=Parser)
    for command in (inspect, benchmark, convert):
        assert command.__doc__ is not None
        sub = commands.add_parser(
            command.__name__, help=command.__doc__, description=command.__doc__, allow_abbrev=False
        )
        folder = "; or a folder written by factorized.save" if command is inspect else ""
        sub.add_argument("model", metavar="IN" if command is convert else "MODEL", help=MODEL + folder)
        if command is convert:
            sub.add_argument("out", metavar="OUT", help="folder to write, for factorized.load")
            sub.add_argument("--overwrite", action="store_true", help="replace the factorized model in OUT")
        size = sub.add_mutually_exclusive_group()
        size.add_argument("--ratio", type=float, metavar="R", help="share of the model that is to be left, as 0.25")
        size.add_argument("--rank-scale", type=float, metavar="S", help="rank of each layer as a share of a dimension")
        sub.add_argument("--cost", choices=COSTS, default=COSTS[0], help="what the ratio is a share of")
        sub.add_argument("--allocate", choices=ALLOCATIONS, default=ALLOCATIONS[0], help="one scale, or ranks by error")
        sub.add_argument("--round-to", type=int, default=1, metavar="N", help="ranks are multiples of N")
        sub.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="how 2-D kernels become matrices")
        sub.add_argument("--embeddings", action="store_true", help="factorize embeddings, too")
        sub.add_argument("--include", action="append", metavar="PATTERN", help="only these layers; may be repeated")
        sub.add_argument("--exclude", action="append", metavar="PATTERN", help="not these layers; may be repeated")
        sub.add_argument("--weights", metavar="FILE", help="state dict to load into the model (.pt, .safetensors)")
        sub.add_argument("--input", metavar="SIZE", help="of an input: 1x3x224x224, or tokens:1x128 for indices")
        sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
        defaults = {action.dest: action.default for action in sub._actions}
        sub.set_defaults(command=command, defaults=defaults)
    return parser


if __name__ == "__main__":
    main()
