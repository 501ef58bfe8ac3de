"""Tables in the documents, made from the records in results/: write them anew, or compare.

    python -m paper docs              # of README.md and docs/*.md
    python -m paper docs --check

A table stands between two lines; the first has the arguments of `python -m paper table`, with paths from the top of the
repository:

    <!-- table: pytorch_resnet_cifar10 --from results/resnet20-cifar10 --columns trials last difference -->
    <!-- end of table -->
"""

import argparse
import re
import shlex
from pathlib import Path

from lab.checkpoint import write_whole
from lab.cli import Parser, UserError, launch

from . import summary
from .scripts import ROOT
from .tables import as_markdown

_BLOCK = re.compile(r"^<!-- table: (?P<arguments>.*?) -->\n(?P<body>.*?)^<!-- end of table -->$", re.M | re.S)
_MARK = re.compile(r"^<!-- (table: .*?|end of table) -->$", re.M)


def markdown(arguments: str) -> str:
    """Return the tables that the arguments of `python -m paper table` ask for.

    Raises:
        UserError: if they are wrong, or a file that they lead to cannot be read: a table must not lose a row unseen.
    """
    args = summary.build_parser().parse_args(shlex.split(arguments))
    if args.places is None:
        raise UserError(f"table: {arguments}: say with --from which records the table is made of")
    made, found = summary.tables_asked_for(args, ROOT)
    if found.passed:
        raise UserError(f"{found.passed[0][0]} {found.passed[0][1]}")
    return "\n\n".join(map(as_markdown, made))


def rewritten(text: str, name: str) -> str:
    """Return a document with its tables as the records give them.

    Args:
        name: of the document, for messages.

    Raises:
        UserError: for a mark without its counterpart; as `markdown`.
    """

    def fill(block: re.Match) -> str:
        return f"<!-- table: {block['arguments']} -->\n\n{markdown(block['arguments'])}\n\n<!-- end of table -->"

    marks = [mark[1].split(":")[0] for mark in _MARK.finditer(text)]
    if len(marks) % 2 or set(marks[::2]) - {"table"} or set(marks[1::2]) - {"end of table"}:
        raise UserError(f"{name}: a table begins with <!-- table: ARGUMENTS --> and ends with <!-- end of table -->")
    return _BLOCK.sub(fill, text)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m paper docs", description=__doc__, formatter_class=form)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="documents (default: README.md, docs/*.md)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table differs from the records")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the tables of the documents anew, or compare them, as the command line says."""
    args = build_parser().parse_args(argv)
    changed = []
    for path in args.files or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        try:
            old = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
        new = rewritten(old, str(path))
        if new != old:
            changed.append(path)
            if not args.check:
                write_whole(path, lambda file, new=new: file.write(new.encode()))  # type: ignore[misc]
    names = ", ".join(map(str, changed))
    if changed and args.check:
        raise UserError(f"tables differ from what the records give in {names}; python -m paper docs writes them anew")
    print(f"rewritten: {names}" if changed else "all tables are what the records give")


if __name__ == "__main__":
    launch(main, "python -m paper docs")
