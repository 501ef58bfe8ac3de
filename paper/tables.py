"""Text tables of results."""

from collections.abc import Collection, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a header as aligned Markdown: the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths))
        return f"| {' | '.join([first.strip().ljust(widths[0]), *others])} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]], left: Collection[int] = ()) -> str:
    """Return rows under a header as aligned text for a terminal.

    Args:
        left: columns that stand to the left, besides the first.
    """
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        sides = ("<" if column in (0, *left) else ">" for column in range(len(header)))
        return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths)).rstrip()

    return "\n".join(map(line, cells))
