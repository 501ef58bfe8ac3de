"""The published study as commands.

    python -m paper scripts       write a bash script for each setting of the paper's tables
    python -m paper run           run them, on this machine or on a Slurm cluster
    python -m paper status        which of their runs are finished, running or have failed
    python -m paper results       all runs that have left results, with what came out; `diff A B` compares two
    python -m paper keep          keep finished runs as small records in the repository
    python -m paper table         the table of a study, beside published numbers
    python -m paper figures       its figures
    python -m paper report        one page about runs, to be opened in a browser, also while they go on
    python -m paper docs          write the tables of README.md and docs/ anew from the records in results/
    python -m paper comparison    the commands of a comparison of tensor layers, as JSON
    python -m paper quickstart    see in about two minutes what the methods do

Every command has its own --help.
"""

import difflib
import importlib
import sys

from lab.cli import UserError, launch

# The module of each command; it has the command's name where nothing else is said.
COMMANDS = dict.fromkeys(("scripts", "run", "status", "results", "diff", "keep", "table", "figures"))
COMMANDS |= {"report": None, "docs": None, "comparison": None, "quickstart": None, "run": "sweep", "table": "summary"}


def main() -> None:
    """Run the command that the command line names."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__.strip())
    elif name in COMMANDS:
        importlib.import_module(f"paper.{COMMANDS[name] or name}").main(argv)
    else:
        close = difflib.get_close_matches(name, list(COMMANDS), n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"there is no command {name}, only {', '.join(COMMANDS)}{meant}")


if __name__ == "__main__":
    launch(main, "python -m paper")
