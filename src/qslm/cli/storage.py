"""The options that say how numbers are stored, and the formats that they make."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qslm.formats import Format

_SHARING = (
    "What shares one scale: tensor, row, or 32, 64 or 128 inputs of a row; 32-s8 stores the scales in 8 bits, 32-p2 as "
    "shifts of one of each row"
)
Group = Annotated[str, typer.Option("--group", help=f"{_SHARING}.")]
Groups = Annotated[str, typer.Option("--group", help=f"{_SHARING}. Or several.")]
Symmetric = Annotated[bool, typer.Option("--symmetric", help="No zero points: codes on both sides of zero alike.")]
Vectors = Annotated[str, typer.Option("--vectors", help="One-dimensional parameters: float32, float16 or bfloat16.")]
Signs = Annotated[bool, typer.Option("--signs/--no-signs", help="Store a binarized embedding as signs: 1 bit, exact.")]
GROUPS = ("tensor", "row", "32", "64", "128")
SCALES = ("", "-s8", "-s32", "-p2")  # behind a group, as at the end of a format's text
DEFAULT_PRECISIONS = "16 14 12 10 8 6 5 4 3 2"


def template(group: str, symmetric: bool, bits: int = 8) -> "Format":
    """The integer format that these options describe; `group` may end in one of SCALES. Raises FormatError."""
    from qslm.errors import FormatError
    from qslm.formats import Format

    shared, dash, ending = group.partition("-")
    if shared not in GROUPS or dash + ending not in SCALES:
        raise FormatError(
            f"--group {group} is not known.",
            f"Choose one of: {', '.join(GROUPS)}; with -s8 behind it for scales in 8 bits, -s32 in 32, or "
            "-p2 for shifts.",
        )
    return Format.parse(f"int{bits}{'-sym' * symmetric}-{'g' * shared.isdigit()}{group}")


def templates(groups: str, symmetric: bool) -> "tuple[Format, ...]":
    """The integer formats of several groups, such as `row 64-s8`. Raises FormatError."""
    return tuple(template(group, symmetric) for group in groups.replace(",", " ").split())


def vector_format(text: str) -> "Format":
    """The float format of the one-dimensional parameters. Raises FormatError."""
    from qslm.errors import FormatError
    from qslm.formats import Format

    if text not in ("float32", "float16", "bfloat16"):
        raise FormatError(f"--vectors {text} is not known.", "Choose float32, float16 or bfloat16.")
    return Format.parse(text)


def parse_precisions(text: str, option: str = "--precisions") -> tuple[int, ...]:
    """Bit widths from `16 14 12` or `16,14,12`. Raises FormatError."""
    from qslm.errors import FormatError
    from qslm.formats import INTEGER_BITS

    words = text.replace(",", " ").split()
    wrong = [w for w in words if not (w.isascii() and w.isdigit() and int(w) in INTEGER_BITS)]
    if wrong or not words:
        known = " ".join(map(str, INTEGER_BITS))
        problem = f"{option} {text!r}: {wrong[0]!r} is no bit width." if wrong else f"{option} is empty."
        raise FormatError(problem, f"Choose from: {known}.")
    return tuple(map(int, words))
