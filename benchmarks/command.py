"""The command line that the programs of this folder share."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qslm.cli.progress import Listener
from qslm.errors import QslmError


def parser(description: str | None) -> argparse.ArgumentParser:
    """The text of a program as its help, and --json, which all of them have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


@contextmanager
def listening(program: argparse.ArgumentParser) -> Iterator[Listener]:
    """Progress for people; an error of ours ends the program with its text."""
    try:
        with Listener() as progress:
            yield progress
    except QslmError as error:
        program.exit(2, f"{error}\n")


def tell(result: Any, arguments: argparse.Namespace, show: Callable[[Any], None]) -> None:
    """Print a result: as JSON, or as `show` does."""
    if arguments.json:
        print(json.dumps(result, indent=2, default=str))
    else:
        show(result)
