"""The user's own data: a UTF-8 text, or a table of labelled sentences."""

from dataclasses import dataclass
from pathlib import Path

from qslm.data.source import read_text
from qslm.errors import DataError

HEADER = ("sentence", "label")


@dataclass(frozen=True)
class LabelledText:
    """Sentences and their classes: `labels[i]`, counted from 0, belongs to `sentences[i]`."""

    sentences: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sentences)

    def select(self, indices: list[int]) -> "LabelledText":
        """The sentences at `indices`, in that order."""
        return LabelledText(
            tuple(self.sentences[index] for index in indices), tuple(self.labels[index] for index in indices)
        )


def load_text_file(path: Path | str) -> str:
    """The text of a UTF-8 file, unchanged. Raises DataError when it is unreadable, not UTF-8, or has no words."""
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} holds no text.", "Give a file with some text in it.")
    return text


def split_halves(text: str) -> tuple[str, str]:
    """Cut `text` in two near its middle: after a blank line, else after a line, else between two words.

    A boundary counts as near when it stands in the middle half. Joined, the parts are the text.
    """
    quarter, middle = len(text) // 4, len(text) // 2
    for boundary in ("\n\n", "\n", " "):
        after = text.find(boundary, middle, len(text) - quarter)
        before = text.rfind(boundary, quarter, middle)
        cuts = [found + len(boundary) for found in (before, after) if found >= 0]
        if cuts:
            cut = min(cuts, key=lambda position: abs(position - middle))
            return text[:cut], text[cut:]
    return text[:middle], text[middle:]


def load_labelled_file(path: Path | str, classes: int | None = None) -> LabelledText:
    """Read lines of `sentence<TAB>label`; a first line `sentence<TAB>label` is a header.

    Labels are the numbers 0 to `classes` - 1. White space around a sentence is dropped; it may hold tabs itself.
    Blank lines at the end are passed over. Raises DataError, with file and line, when a tab is missing, a sentence
    is empty, or a label is none of the classes.
    """
    path = Path(path)
    lines = read_text(path).removeprefix("\ufeff").split("\n")
    rows = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1)]
    if tuple(part.strip().lower() for part in rows[0][1].split("\t")) == HEADER:
        del rows[0]
    while rows and not rows[-1][1].strip(" "):
        del rows[-1]
    if not any(line.strip() for _, line in rows):
        raise DataError(f"{path} holds no sentences.", "Give lines of the form: sentence<TAB>label.")
    pairs = [_parse_line(line, f"{path}, line {number}", classes) for number, line in rows]
    return LabelledText(tuple(sentence for sentence, _ in pairs), tuple(label for _, label in pairs))


def _parse_line(line: str, where: str, classes: int | None) -> tuple[str, int]:
    sentence, tab, label = line.rpartition("\t")
    if not tab:
        problem = f"{where}: no tab in {line[:60]!r}." if line.strip() else f"{where}: the line is empty."
        raise DataError(problem, "Each line has the form: sentence<TAB>label.")
    label = label.strip()
    known = label.isascii() and label.isdigit() and len(label) < 10
    if not known or (classes is not None and int(label) >= classes):
        wanted = "a number from 0 on" if classes is None else f"one of the model's classes, 0 to {classes - 1}"
        problem = f"{where}: the label {label[:60]!r} is not {wanted}."
        raise DataError(problem, "Correct the label; each line has the form: sentence<TAB>label.")
    if not sentence.strip():
        raise DataError(
            f"{where}: the sentence before the label {label} is empty.", "Write a sentence or remove the line."
        )
    return sentence.strip(), int(label)
