"""."""


def search() -> None:
    """."""
