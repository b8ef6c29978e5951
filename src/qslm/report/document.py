"""A page as a document, and what its sections are made of: one file, no network, every text from a file escaped."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any


def document(
    kind: str, title: str, sections: Sequence[str], drawn: Mapping[str, Mapping[str, Any]], subtitle: str = ""
) -> str:
    """A page of `sections` (HTML), in which the figures go into the elements that bear their names."""
    from plotly.offline import get_plotlyjs

    below = f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)} - qslm</title>",
            f"<style>\n{_resource('page.css')}</style>\n</head>\n<body>\n<main>",
            f"<header><p>{escape(kind)}</p><h1>{escape(title)}</h1>{below}</header>",
            *sections,
            "<footer>Written by qslm. The page holds everything it shows and opens offline.</footer>\n</main>",
            f"<script>{get_plotlyjs()}</script>",
            f'<script type="application/json" id="figures">{_json(drawn)}</script>',
            f"<script>\n{_resource('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


def _resource(name: str) -> str:
    return (files("qslm.report") / name).read_text(encoding="utf-8")


def _json(value: object) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def figure(name: str, title: str, text: str, style: str = "plot") -> str:
    """The section of the figure `name`; `title` and `text` are HTML."""
    return (
        f'<section><h2>{title}</h2><p>{text}</p><div class="wide"><div class="{style}" id="{name}"></div></div>'
        "</section>"
    )


def card(term: str, value: str, note: str) -> str:
    """One figure of the answer, with a small note."""
    return f"<div><dt>{escape(term)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"


def cell(text: str, value: float | None) -> str:
    """A number in a table, and what it is sorted by."""
    sortable = "" if value is None else "Infinity" if value == math.inf else repr(value)
    return f'<td data-value="{sortable}">{escape(text)}</td>'


def provenance(terms: Iterable[tuple[str, str]]) -> str:
    """The section that says where the numbers come from."""
    lines = "".join(f"<dt>{escape(term)}</dt><dd>{escape(value)}</dd>" for term, value in terms)
    return f'<section><h2>Where the numbers come from</h2><dl class="source">{lines}</dl></section>'
