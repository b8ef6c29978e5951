"""What verbs print: JSON for programs, tables for people."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qslm.finite import finite

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """Print `value` as JSON on stdout; what is no finite number becomes null, as JSON has none."""
    print(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def console() -> "Console":
    """The console of stdout; on a pipe it is so wide that nothing is cut."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 240, highlight=False)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", texts: int = 1) -> None:
    """Print a table on stdout: the first `texts` columns to the left, numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if place >= texts else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)
