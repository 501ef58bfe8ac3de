"""Show in what the arguments and the results of two runs differ.

python -m paper diff results/resnet20/plain-1.json results/resnet20/both-1.json
"""

from pathlib import Path
from typing import Any

from lab.cli import Parser, UserError, launch

from .finished import Run, portable
from .runs import find
from .tables import text_table


def differences(one: Run, other: Run) -> list[tuple[str, str, str, str]]:
    """Return what differs: argument or result, its name, and its value in each run."""
    rows = []
    for kind, a, b in (("argument", one.arguments, other.arguments), ("result", one.results, other.results)):
        for name in {**a, **b}:
            values = [portable(side[name]) if name in side else "(none)" for side in (a, b)]
            if values[0] != values[1]:
                rows.append((kind, name, _text(values[0]), _text(values[1])))
    return rows


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def the_run(path: Path) -> Run:
    """Return the only finished run at a path.

    Raises:
        UserError: if there is none, or more.
    """
    found = find([path])
    if len(found.runs) == 1:
        return found.runs[0]
    if found.passed and not found.runs:
        raise UserError(f"{found.passed[0][0]} {found.passed[0][1]}")
    raise UserError(f"{path} holds {len(found.runs)} finished runs; name the folder or the record of one")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m paper diff", description=__doc__.splitlines()[0])
    for name in ("A", "B"):
        parser.add_argument(name.lower(), type=Path, metavar=name, help="folder of a finished run, or its record")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print what differs between two runs."""
    args = build_parser().parse_args(argv)
    rows = differences(the_run(args.a), the_run(args.b))
    print(text_table(("", "name", str(args.a), str(args.b)), rows, left=(1, 2, 3)) if rows else "they are equal")


if __name__ == "__main__":
    launch(main, "python -m paper diff")
