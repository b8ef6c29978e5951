"""."""


def demo() -> None:
    """."""
