"""The page: escaped HTML pieces, styles and scripts inline, no request to anywhere.

Everything given as ``str`` is escaped here; only ``Html`` passes as it is. The content security
policy of the page forbids every request, so an oversight cannot become one.
"""

import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

__all__ = [
    "Html",
    "chart",
    "details",
    "element",
    "join",
    "page",
    "preformatted",
    "section",
    "table",
]

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src data: blob:; base-uri 'none'; form-action 'none'"
)


class Html(str):
    """Text that is already HTML."""

    __slots__ = ()


def join(parts: Iterable[str]) -> Html:
    """Put pieces one after another, escaping those that are plain text."""
    return Html("".join(_escape(part) for part in parts))


def element(tag: str, *content: str, css: str | None = None) -> Html:
    """``<tag class="css">content</tag>``."""
    attribute = "" if css is None else f' class="{html.escape(css)}"'
    return Html(f"<{tag}{attribute}>{join(content)}</{tag}>")


def section(title: str, *content: str, lead: str = "") -> Html:
    """Return a titled part of the page; ``lead`` says in a sentence how to read it."""
    intro = element("p", lead, css="lead") if lead else Html("")
    return element("section", element("h2", title), intro, *content)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1, strong: int = -1
) -> Html:
    """Return a table whose first ``text_columns`` columns are text and the others figures.

    ``strong`` is the number of a row to set apart.
    """

    def line(tag: str, cells: Sequence[str], css: str | None) -> Html:
        styled = (
            element(tag, cell, css=None if i < text_columns else "n")
            for i, cell in enumerate(cells)
        )
        return element("tr", *styled, css=css)

    body = (line("td", row, "strong" if i == strong else None) for i, row in enumerate(rows))
    return element(
        "div",
        element("table", element("thead", line("th", head, None)), element("tbody", *body)),
        css="scroll",
    )


def details(summary: str, *content: str) -> Html:
    """Return a part that is folded until asked for."""
    return element("details", element("summary", summary), *content)


def preformatted(text: str) -> Html:
    """Return text as it is, in a fixed-width face."""
    return element("pre", text)


def chart(figure: Any, label: str) -> Html:
    """Return a plotly figure, drawn when the page opens; ``label`` is read to who cannot see it."""
    spec = json.loads(figure.to_json())
    height = int(spec["layout"]["height"])
    data = json.dumps({"data": spec["data"], "layout": spec["layout"]}, separators=(",", ":"))
    for char in "<>&":
        data = data.replace(char, f"\\u{ord(char):04x}")
    return Html(
        f'<figure class="chart" role="img" aria-label="{html.escape(label)}"'
        f' style="min-height:{height}px">'
        f'<script type="application/json">{data}</script><div></div></figure>'
    )


def page(title: str, *content: str) -> str:
    """Return a whole document with plotly.js, styles and the drawing script inside."""
    own = files("qbtc.pages")
    style = (own / "page.css").read_text(encoding="utf-8")
    draw = (own / "page.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{join(content)}\n</main>\n"
        f'<script id="plotly">{get_plotlyjs()}</script>\n<script>\n{draw}</script>\n'
        "</body>\n</html>\n"
    )


def _escape(part: str) -> str:
    return part if isinstance(part, Html) else html.escape(part)
