"""Tables of results, and the forms that they are written in: for a terminal, Markdown, CSV, LaTeX and HTML."""

import csv
import html
import io
import math
import re
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lab.cli import printable

from .statistics import Difference, mean_and_spread


@dataclass(frozen=True)
class Spread:
    """A number of several trials."""

    values: tuple[float, ...]
    digits: int = 2

    @property
    def mean(self) -> float:
        """Return the mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Return the standard deviation, None of a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return mean_and_spread(self.values, self.digits)


@dataclass(frozen=True)
class Code:
    """A command."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """Rows under a header. A cell is None, a text, a `Code`, a number, a `Spread` or a `Difference`."""

    title: str
    """Of the first column, which holds what the rows are."""
    columns: tuple[str, ...]
    """Names of all columns but the first."""
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    digits: int = 2
    """Of differences."""

    @property
    def header(self) -> tuple[str, ...]:
        """Return the names of all columns."""
        return (self.title, *self.columns)

    def text(self, value: Any) -> str:
        """Return a cell as people read it."""
        if isinstance(value, Difference):
            return value.text(self.digits)
        if isinstance(value, int):
            return f"{value:,}"
        if value is None:
            return ""
        return f"{value:.4g}" if isinstance(value, float) else printable(str(value))

    @property
    def texts(self) -> list[list[str]]:
        """Return all cells as people read them."""
        return [[self.text(value) for value in row] for row in self.rows]

    @property
    def words(self) -> set[int]:
        """Return the columns that stand to the left: the first, and those of commands and words."""
        kinds = [{type(row[i]) for row in self.rows if row[i] not in (None, "")} for i in range(len(self.header))]
        return {0} | {i for i, kind in enumerate(kinds) if Code in kind or (kind == {str} and not self._numeric(i))}

    def _numeric(self, column: int) -> bool:
        return all(_is_number(str(row[column])) for row in self.rows if row[column])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text.removeprefix("B ")))
    except ValueError:
        return False


def table(header: Sequence[str], rows: Sequence[Sequence[object]], left: Collection[int] = ()) -> str:
    """Return rows under a header as aligned Markdown: the first column and `left` to the left, others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        sides = ("<" if column in (0, *left) else ">" for column in range(len(header)))
        return f"| {' | '.join(f'{cell:{side}{width}}' for cell, side, width in zip(row, sides, widths))} |"

    ends = ("-" if column in (0, *left) else ":" for column in range(len(header)))
    rule = "|".join(["", *("-" * (width + 1) + end for width, end in zip(widths, ends)), ""])
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]], left: Collection[int] = ()) -> str:
    """Return rows under a header as aligned text for a terminal: the first column and `left` to the left."""
    cells = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        sides = ("<" if column in (0, *left) else ">" for column in range(len(header)))
        return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths)).rstrip()

    return "\n".join(map(line, cells))


def as_text(shown: Table) -> str:
    """Return a table for a terminal, its notes below."""
    return "\n".join([text_table(shown.header, shown.texts, shown.words), *(f"  {note}" for note in shown.notes)])


def as_markdown(shown: Table) -> str:
    """Return a table as Markdown, its notes below as a paragraph."""

    def cell(value: Any) -> str:
        text = shown.text(value).replace("|", "\\|")
        return f"`{text}`" if isinstance(value, Code) else text

    body = table(shown.header, [[cell(value) for value in row] for row in shown.rows], shown.words)
    return "\n\n".join([body, *(["\n".join(shown.notes)] if shown.notes else [])])


def as_csv(shown: Sequence[Table]) -> str:
    """Return tables as CSV: means with all digits, deviations and half widths in columns of their own.

    Several are one, as programs read it: the first column has the title, the second what the rows are, and columns that
    a table has not are empty.
    """
    rows = [row for one in shown for row in _rows_of_csv(one, len(shown) > 1)]
    written = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(written, [*names] or shown[0].header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue().rstrip("\n")


def _rows_of_csv(shown: Table, titled: bool) -> list[dict[str, Any]]:
    """Return the rows by the names of columns, with the title in a column of its own if it is not to be a name."""
    beside = {Spread: "standard deviation", Difference: "half width of the 95 % interval"}
    rows: list[dict[str, Any]] = [{"table": shown.title} if titled else {} for _ in shown.rows]
    for name, *values in zip(("row", *shown.columns) if titled else shown.header, *shown.rows):
        kind = next((kind for value in values for kind in beside if isinstance(value, kind)), None)
        for row, value in zip(rows, values):
            row[name], other = _parts(value)
            row |= {f"{name}, {beside[kind]}": other} if kind else {}
    return rows


def _parts(value: Any) -> tuple[Any, Any]:
    """Return what CSV has for a cell: the number, and what is beside it."""
    if isinstance(value, Spread):
        return value.mean, "" if value.deviation is None else value.deviation
    if isinstance(value, Difference):
        return value.mean, value.half_width if math.isfinite(value.half_width) else ""
    return "" if value is None else value, ""


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "−": "$-$"} | {c: f"\\{c}" for c in "&%$#_{}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def as_latex(shown: Table) -> str:
    r"""Return a table as a LaTeX `tabular`, which needs `\usepackage{booktabs}`; notes are comments."""

    def line(texts: Sequence[str]) -> str:
        signed = ("−" + text[1:] if re.match(r"-[\d.]", text) else text for text in texts)  # a minus, no hyphen
        return " & ".join("".join(_LATEX.get(c, c) for c in text) for text in signed) + r" \\"

    sides = "".join("l" if i in shown.words else "r" for i in range(len(shown.header)))
    rows = [line(row) for row in shown.texts]
    lines = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", line(shown.header), r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", *(f"% {note}" for note in shown.notes)])


def as_html(shown: Table) -> str:
    """Return a table as HTML; each cell says by which value it is sorted."""

    def cell(column: int, value: Any) -> str:
        text = html.escape(shown.text(value))
        key = value.mean if isinstance(value, Spread | Difference) else value
        key = f"{key!r}" if isinstance(key, int | float) else html.escape(shown.text(value))
        name = ' class="words"' if column in shown.words else ""
        return f'<td{name} data-key="{key}">{f"<code>{text}</code>" if isinstance(value, Code) else text}</td>'

    head = "".join(
        f"<th{' class=words' if i in shown.words else ''}><button>{html.escape(name)}</button></th>"
        for i, name in enumerate(shown.header)
    )
    rows = "\n".join("<tr>" + "".join(cell(i, value) for i, value in enumerate(row)) + "</tr>" for row in shown.rows)
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in shown.notes)
    return f"<table class=sortable>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>\n{notes}"


def _each(form: Callable[[Table], str]) -> Callable[[Sequence[Table]], str]:
    return lambda tables: "\n\n".join(map(form, tables))


FORMS = {"text": _each(as_text), "markdown": _each(as_markdown), "csv": as_csv, "latex": _each(as_latex)}
"""What makes texts of tables, by the names that the command line has for them."""
