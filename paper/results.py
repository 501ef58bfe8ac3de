"""List the runs that have left results: what was run, in which state it is, what came out, and where it lies.

python -m paper results                                 # of the generated scripts, and the records in results/
python -m paper results --from /tmp/try --status failed
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from lab.cli import Parser, UserError, launch, printable

from .reading import run_name
from .runs import Found, find, places
from .status import STATES
from .studies import STUDIES
from .tables import text_table


def warn_of(found: Found, say: Callable[[str], object]) -> None:
    """Say which files were passed over, and why."""
    for path, why in found.passed:
        say(printable(f"passed over: {path} {why}"))


def add_places(parser: Parser) -> None:
    """Add the flag that says where runs and records lie."""
    parser.add_argument(
        "--from", dest="places", nargs="+", type=Path, metavar="PATH",
        help="folders of runs or records, at any depth (default: results of the generated scripts, and results/)",
    )  # fmt: skip


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m paper results", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add_places(parser)
    add("--study", choices=list(STUDIES), metavar="NAME", help=", ".join(STUDIES))
    add("--status", choices=STATES[:-1], metavar="STATE", help=f"{', '.join(STATES[:-1])}")
    add("--only", metavar="GLOB", default="*", help="only runs whose setting or folder is named so")
    add("--method", metavar="GLOB", default="*", help="only finished runs of such a method, such as 'SI*'")
    add("--seed", type=int, metavar="N", help="only finished runs with this seed")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print a line for each run that the command line asks for."""
    args = build_parser().parse_args(argv)
    found = find(places(args.places), args.study)
    rows: list[tuple[object, ...]] = []
    for run in found.runs if args.status in (None, "finished") else []:
        named = fnmatchcase(run.setting or "", args.only) or fnmatchcase(run.name, args.only)
        if named and fnmatchcase(run.method, args.method) and args.seed in (None, run.seed):
            score = f"{run.results['final']:.4g}"
            what = run.setting or f"{run.results['network']} {run.data} {run.method}"
            rows.append((what, run.study, run.seed, "finished", score, run.metric, run.path))
    chosen = args.method == "*" and args.seed is None
    for other in found.unfinished if chosen else []:
        name = other.setting or run_name(other.path)
        if args.status in (None, other.state) and fnmatchcase(name, args.only):
            rows.append((name, other.study or "", "", other.state, "", other.why, other.path))
    warn_of(found, print)
    if not rows:
        raise UserError("there is no such run; --help lists what can be asked for")
    print(text_table(("setting", "study", "seed", "status", "final", "metric", "where"), rows, left=(1, 3, 5, 6)))


if __name__ == "__main__":
    launch(main, "python -m paper results")
