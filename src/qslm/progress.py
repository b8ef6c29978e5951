"""How long work tells what it is doing, without knowing who listens."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Receives the steps of long work; the command line draws a bar from them."""

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
        """Yield `items` one by one, `total` of them, and show how far they are."""
        ...

    def message(self, text: str) -> None:
        """Show one line."""
        ...


class Silent:
    """A listener that shows nothing."""

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
        """Yield `items` one by one."""
        yield from items

    def message(self, text: str) -> None:
        """Show nothing."""


SILENT = Silent()
