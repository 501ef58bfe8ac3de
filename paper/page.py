"""A page of HTML that needs nothing else: no other file, no network."""

import base64
import html
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .charts import Panel, draw
from .events import Curves

STYLE = """
:root { color-scheme: light; --line: #d7d7d7; --soft: #f5f5f5; --link: #0b57a4 }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; margin: 0 auto; max-width: 1500px; padding: 1.5rem }
p { max-width: 1100px }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem } h3 { font-size: 1rem }
nav a { margin-right: 1rem } a { color: var(--link) } .note { color: #555; margin: .3rem 0; font-size: .87rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0; font-size: .92em; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem; text-align: right; white-space: nowrap }
th.words, td.words, .pairs td, .pairs th { text-align: left } thead th { border-bottom: 2px solid #888 }
th button { all: unset; cursor: pointer; font-weight: 600 } th button:focus-visible { outline: 2px solid var(--link) }
th[aria-sort=ascending] button::after { content: " \\25B2" }
th[aria-sort=descending] button::after { content: " \\25BC" }
tbody tr:hover { background: var(--soft) } figure { margin: 1rem 0 } figure img { max-width: 100%; height: auto }
figcaption { color: #555; font-size: .87rem } code, pre { font: .85rem/1.4 ui-monospace, monospace }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
details { border-bottom: 1px solid var(--line); padding: .3rem 0 } summary { cursor: pointer }
details > div { display: flex; flex-wrap: wrap; gap: 1.5rem; padding: .5rem 1rem } .pairs td { white-space: normal }
.pairs td, .pairs th { padding: .1rem .7rem }
.state { display: inline-block; border: 1px solid; border-radius: .6rem; padding: 0 .5rem; font-size: .8rem }
.failed { color: #a11 } .running { color: #0b57a4 } .stopped { color: #7a5b00 } .finished { color: #1a6b3c }
svg.course { background: var(--soft) } input[type=search] { font: inherit; padding: .2rem .5rem; width: 20rem }
"""

SCRIPT = """
for (const button of document.querySelectorAll('table.sortable th button')) button.onclick = () => {
  const head = button.parentNode, column = [...head.parentNode.children].indexOf(head)
  const up = head.getAttribute('aria-sort') !== 'ascending', body = head.closest('table').tBodies[0]
  for (const other of head.parentNode.children) other.removeAttribute('aria-sort')
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending')
  const key = row => row.cells[column].dataset.key
  const number = text => text === '' ? NaN : Number(text)
  const compare = (a, b) => {
    const [x, y] = [number(key(a)), number(key(b))]
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1  // what has no number stays last
    return (isNaN(x) ? key(a).localeCompare(key(b)) : x - y) * (up ? 1 : -1)
  }
  for (const row of [...body.rows].sort(compare)) body.append(row)
}
const wanted = document.querySelector('input[type=search]')
if (wanted) wanted.oninput = () => {
  for (const run of document.querySelectorAll('details.run'))
    run.hidden = !run.textContent.toLowerCase().includes(wanted.value.toLowerCase())
}
"""


def whole_page(title: str, body: Iterable[str], refresh: int | None = None) -> str:
    """Return a page.

    Args:
        refresh: seconds after which a browser reads it again.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n{again}'
        f'<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n{chr(10).join(body)}\n<script>{SCRIPT}</script>\n</html>\n"
    )


def picture(panels: Sequence[Panel], caption: str) -> str:
    """Return panels as a figure with its caption."""
    with tempfile.TemporaryDirectory() as folder:
        draw(panels, Path(folder) / "figure.png")
        data = base64.b64encode((Path(folder) / "figure.svg").read_bytes()).decode()
    titles = "; ".join(panel.title for panel in panels)
    alt, words = html.escape(f"{caption}: {titles}"), html.escape(caption)
    return f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"><figcaption>{words}</figcaption></figure>'


def pairs(values: Mapping[str, Any], heading: str) -> str:
    """Return names with their values as a table."""
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f'<div><h3>{html.escape(heading)}</h3><table class="pairs"><tbody>{rows}</tbody></table></div>'


def _short(value: Any, longest: int = 300) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, float):
        text = f"{value:.6g}"
    return text if len(text) <= longest else f"{text[:longest]} ..."


def courses(curves: Curves, titles: Mapping[str, str]) -> str:
    """Return small charts of what one run has logged, by tag."""
    return "".join(_course(title, *curves[tag]) for tag, title in titles.items() if tag in curves)


def _course(title: str, steps: Sequence[int], values: Sequence[float]) -> str:
    """Return a line with its first, last, lowest and highest value in words."""
    width, height, margin = 220, 90, 6
    shown = [(step, value) for step, value in zip(steps, values) if value - value == 0]  # finite
    if not shown:
        return ""
    low, high = min(v for _, v in shown), max(v for _, v in shown)
    left, right = shown[0][0], shown[-1][0]

    def at(step: float, value: float) -> str:
        x = margin + (width - 2 * margin) * (step - left) / ((right - left) or 1)
        y = height - margin - (height - 2 * margin) * (value - low) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    words = f"{shown[0][1]:.4g} to {shown[-1][1]:.4g}, lowest {low:.4g}, highest {high:.4g}"
    points = " ".join(at(*point) for point in shown)
    x, y = at(*shown[-1]).split(",")
    return (
        f'<figure><svg class="course" width="{width}" height="{height}" role="img" aria-label="{html.escape(title)}: '
        f'{words}"><polyline points="{points}" fill="none" stroke="#0072B2" stroke-width="1.5"/>'
        f'<circle cx="{x}" cy="{y}" r="2.5" fill="#0072B2"/></svg>'
        f"<figcaption>{html.escape(title)}<br>{words}</figcaption></figure>"
    )
