"""Write one page of HTML about runs: tables, figures, every run with its arguments and curves, what failed and why.

    python -m paper report pytorch_resnet_cifar10/results -o report.html
    python -m paper report /tmp/runs -o report.html --watch        # writes it anew while runs go on

The page needs no other file and no network.
"""

import argparse
import html
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lab.checkpoint import write_whole
from lab.cli import Parser, UserError, launch, number, printable

from .events import Curves, curves_of_events
from .figures import figures_of
from .finished import Run, portable
from .page import courses, pairs, picture, whole_page
from .reproduce import command_of
from .runs import Found, Unfinished, find
from .selection import Section, sections
from .status import STATES
from .summary import Options, table_of
from .tables import Table, as_html

_COURSES = {
    "train/loss": "training loss", "valid/accuracy": "accuracy (%)", "valid/nll_loss": "validation loss",
    "metric/FrobNorm": "mean Frobenius norm",
}  # fmt: skip
_LINES = 20  # of a failed run's log

Pictures = dict[tuple, str]
"""Figures that have been drawn already, by what is in them."""


def page_about(found: Found, title: str, pictures: Pictures, refresh: int | None = None) -> str:
    """Return the page.

    Args:
        pictures: figures of an earlier call, which are not drawn again where nothing has changed.
        refresh: seconds after which a browser reads the page again.
    """
    count = Counter(run.state for run in found.unfinished) + Counter(finished=len(found.runs))
    states = ", ".join(f"{count[state]} {state}" for state in STATES if count[state])
    parts = {"Tables": _tables(found), "Not finished": _unfinished(found.unfinished)}
    parts |= {"Figures": _figures(found, pictures), "Where it ran": _places(found), "Runs": _runs(found.runs)}
    parts["Passed over"] = _passed(found)
    full = {name: "\n".join(lines) for name, lines in parts.items()}
    full = {name: text for name, text in full.items() if text}
    links = " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in full)
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    body = [f"<p>{states or 'no runs yet'}. <span class=note>Written at {written}.</span></p>", f"<nav>{links}</nav>"]
    body += [f'<section id="{_anchor(name)}"><h2>{name}</h2>\n{text}</section>' for name, text in full.items()]
    return whole_page(title, body, refresh)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _sections(found: Found) -> Iterator[tuple[str, Section]]:
    for study in dict.fromkeys(run.study for run in found.runs):
        for section in sections(run for run in found.runs if run.study == study):
            yield study, section


def _tables(found: Found) -> Iterator[str]:
    for study, section in _sections(found):
        heading = html.escape(f"{section.title} ({study})")
        yield f"<h3>{heading}</h3>\n<div class=wide>{as_html(table_of(section, Options()))}</div>"


def _figures(found: Found, pictures: Pictures) -> Iterator[str]:
    for study, section in _sections(found):
        flags = argparse.Namespace(by=(), last=Options().last)
        for name, panels in figures_of(section, flags):
            key = (study, section.title, name, *(run.identity for run in section.runs))
            if panels:
                if key not in pictures:
                    pictures[key] = picture(
                        panels, f"{section.title}: {name.replace('-', ' ').replace('_', ' ').strip()}"
                    )
                yield pictures[key]


def _places(found: Found) -> Iterator[str]:
    """Yield a table of the machines and versions."""
    rows: dict[tuple[str, ...], list[Run]] = {}
    for run in found.runs:
        versions = run.results.get("versions")
        torch = versions.get("torch") if isinstance(versions, dict) else None
        key = (run.study, run.results.get("machine"), torch, run.results.get("revision"))
        rows.setdefault(tuple(str(part or "") for part in key), []).append(run)
    if rows:
        hours = [round(sum(run.results["seconds"] for run in runs) / 3600, 2) for runs in rows.values()]
        lines = [(*key, len(runs), hour) for (key, runs), hour in zip(rows.items(), hours)]
        columns = ("machine", "PyTorch", "revision", "runs", "hours")
        yield f"<div class=wide>{as_html(Table('study', columns, tuple(lines)))}</div>"


def _unfinished(runs: Sequence[Unfinished]) -> Iterator[str]:
    order = {state: place for place, state in enumerate(("failed", "running", "stopped"))}
    for run in sorted(runs, key=lambda run: (order.get(run.state, 9), str(run.path))):
        says = f" <span class=note>{html.escape(_progress(run.path))}</span>" if run.state == "running" else ""
        inner = [f"<p>{html.escape(run.why)}</p>"] if run.why else []
        if run.state != "running" and (log := _log(run.path)):
            inner.append(f"<pre>{html.escape(log)}</pre>")
        if run.setting:
            again = f"python -m paper run {run.study} --only {run.setting}"
            inner.append(f"<p>Goes on with <code>{html.escape(again)}</code></p>")
        yield _details(run.state, str(run.path), says, f"<div>{courses(_curves_so_far(run.path), _COURSES)}</div>",
                       "".join(inner), is_open=run.state == "failed")  # fmt: skip


def _progress(folder: Path) -> str:
    """Return how far a run says it is, nothing if it does not."""
    try:
        said = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        return f"{float(said['done']):.4g} of {float(said['total']):.6g} {said['unit']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _log(folder: Path) -> str:
    path = folder / "log.txt"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
    except OSError:
        return ""
    return "\n".join(map(printable, lines))


def _curves_so_far(folder: Path) -> Curves:
    try:
        return curves_of_events(folder)
    except UserError:
        return {}  # being written


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) > 5:
        yield '<p><label>Only those with <input type="search" placeholder="SI &amp; FD, seed, an argument"></label></p>'
    for run in sorted(runs, key=lambda run: (run.study, run.setting or "", str(run.path))):
        head = f"{run.results['network']} on {run.data}, {run.method}, seed {run.seed}: {run.results['final']:.4g} "
        again = [f"<pre>{html.escape(command_of(run))}</pre>"] if run.arguments else []
        if run.setting:
            grid = f"python -m paper run {run.study} --only {run.setting}"
            again.append(f"<p>As a setting of the grid: <code>{html.escape(grid)}</code></p>")
        inner = (
            f"<div>{courses(run.curves, _COURSES)}</div>{''.join(again)}"
            f"<div>{pairs(portable(dict(run.arguments)), 'Arguments')}"
            f"{pairs(portable(dict(run.results)), 'Results')}</div>"
        )
        yield _details("finished", head + run.metric, f" <span class=note>{html.escape(str(run.path))}</span>", inner)


def _details(state: str, head: str, more: str, *inner: str, is_open: bool = False) -> str:
    shown, words = " open" if is_open else "", html.escape(printable(head))
    return (
        f'<details class="run"{shown}><summary><span class="state {state}">{state}</span> {words}{more}</summary>'
        f"{''.join(inner)}</details>"
    )


def _passed(found: Found) -> Iterator[str]:
    for path, why in found.passed:
        yield f"<p><code>{html.escape(printable(str(path)))}</code> {html.escape(printable(why))}</p>"


def write(text: str, path: Path) -> None:
    """Write a page.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def build_parser() -> Parser:
    """Return the parser of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m paper report", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULTS", help="folders of runs or records, at any depth")
    add("--out", "-o", type=Path, default=Path("report.html"), metavar="FILE", help="default report.html")
    add("--title", default="Runs of factorized networks", help="default: %(default)s")
    add(
        "--watch",
        nargs="?",
        type=number(int, least=1),
        const=30,
        metavar="SECONDS",
        help="write the page anew so often (default 30) until Ctrl-C; browsers read it again by themselves",
    )
    return parser


def main(argv: list[str] | None = None, sleep: Callable[[float], object] = time.sleep) -> None:
    """Write the page that the command line asks for, once or again and again.

    Args:
        sleep: what waits between two pages; one that raises an exception ends the watch.
    """
    args = build_parser().parse_args(argv)
    pictures: Pictures = {}
    while True:
        found = find(args.results)
        if not args.watch and not (found.runs or found.unfinished):
            why = "; ".join(f"{path} {why}" for path, why in found.passed[:3])
            raise UserError(why or f"there are no runs in {', '.join(map(str, args.results))}")
        write(page_about(found, args.title, pictures, args.watch), args.out)
        print(f"{args.out.resolve()}: {len(found.runs)} finished runs, {len(found.unfinished)} others")
        if not args.watch:
            return
        sleep(args.watch)


if __name__ == "__main__":
    launch(main, "python -m paper report")
