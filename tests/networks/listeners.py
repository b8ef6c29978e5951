"""Listeners to what takes long."""


class Talkative:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.heard = []

    def track(self, items, total, description):
        yield from items

    def message(self, text):
        self.heard.append(text)
