"""."""


def select() -> None:
    """."""
