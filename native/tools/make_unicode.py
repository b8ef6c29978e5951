"""Write `native/text/unicode_classes.h` and `native/text/unicode_nfc.h`.

The first tells which code points are letters, numbers and white space for byte-level BPE, as the package `tokenizers`
itself has it: it is asked by the two things in it that classify, its regular expressions (`\\p{L}`, `\\p{N}`, `\\s`;
Oniguruma's version of Unicode) and its `Digits` (that of Rust, which is newer). The second tells which code points may
change, or change with those before them, where text is normalized to NFC, by Python's own `unicodedata`.

Run it again, and the tests, when `tokenizers` changes: python native/tools/make_unicode.py
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, pre_tokenizers

POINTS = 0x110000
BLOCK = 256  # code points of a block; equal blocks are stored once
PATTERNS = {1: r"\p{L}", 2: r"\p{N}", 3: r"\s"}
WIDTH = 118
FOLDER = Path(__file__).parents[1] / "text"
JAMO = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))  # vowels and ends of Hangul compose by a rule, not by the table

NFC = """\
// Made by native/tools/make_unicode.py from Unicode {version}; not to be edited.
// Ranges of code points that normalization to NFC may change, or that may change with those before them: text without
// them is in NFC. Code points that are not assigned belong to a range where both its neighbours do.
#ifndef QSLM_UNICODE_NFC_H
#define QSLM_UNICODE_NFC_H

#include <stdint.h>
"""

HEAD = """\
// Made by native/tools/make_unicode.py from tokenizers {version}; not to be edited.
// The class of the code point p, in two bits: 0 other, 1 letter, 2 number, 3 white space. Word p % 256 / 32 of block
// QSLM_CLASS_BLOCK[p / 256] has it in its bits 2 * (p % 32) and the next.
#ifndef QSLM_UNICODE_CLASSES_H
#define QSLM_UNICODE_CLASSES_H

#include <stdint.h>
"""


def characters() -> Iterator[str]:
    """All code points that UTF-8 can hold, in order."""
    return (chr(point) for point in range(POINTS) if not 0xD800 <= point < 0xE000)


def matches(pattern: str) -> set[str]:
    """The characters that a regular expression of one character takes."""
    everything = "".join(characters())
    kept = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(everything)
    return set(everything).difference(*(part for part, _ in kept))


def digits() -> set[str]:
    """The characters that `Digits` cuts off."""
    cut = pre_tokenizers.Digits(individual_digits=True)
    return {character for character in characters() if len(cut.pre_tokenize_str("a" + character)) == 2}


def table() -> list[int]:
    """The class of every code point."""
    classes = [0] * POINTS
    for value, pattern in PATTERNS.items():
        for character in matches(pattern):
            classes[ord(character)] = value
    return classes


def ranges(points: list[int]) -> list[tuple[int, int]]:
    """First and last code point of each run."""
    known = set(points)
    starts = [point for point in points if point - 1 not in known]
    ends = [point for point in points if point + 1 not in known]
    return list(zip(starts, ends, strict=True))


def composing() -> set[int]:
    """Code points that combine, that compose with the one before, or that are not in NFC themselves."""
    pairs = (unicodedata.decomposition(character).split() for character in characters())
    seconds = {int(pair[1], 16) for pair in pairs if len(pair) == 2 and not pair[0].startswith("<")}
    return seconds.union(
        JAMO,
        (ord(one) for one in characters() if unicodedata.combining(one) or unicodedata.normalize("NFC", one) != one),
    )


def joined(points: list[int]) -> list[tuple[int, int]]:
    """Runs of code points; what is not assigned does not part them."""
    runs: list[tuple[int, int]] = []
    for start, end in ranges(points):
        if runs and all(unicodedata.category(chr(point)) == "Cn" for point in range(runs[-1][1] + 1, start)):
            start = runs.pop()[0]
        runs.append((start, end))
    return runs


def nfc() -> str:
    """The whole of `unicode_nfc.h`."""
    runs = [f"{{0x{start:X}, 0x{end:X}}}" for start, end in joined(sorted(composing()))]
    declared = array(f"uint32_t QSLM_NOT_SURELY_NFC[{len(runs)}][2]", runs)
    return "\n".join([NFC.format(version=unicodedata.unidata_version), declared, "#endif\n"])


def lines(values: list[str]) -> Iterator[str]:
    """Values in lines of at most WIDTH characters."""
    line = ""
    for value in values:
        if len(line) + len(value) + 6 > WIDTH:
            yield f"    {line.rstrip()}"
            line = ""
        line += f"{value}, "
    yield f"    {line.rstrip()}"


def array(declaration: str, values: list[str]) -> str:
    """A constant of C."""
    body = "\n".join(lines(values))
    return f"static const {declaration} = {{\n{body}\n}};\n"


def classes() -> str:
    """The whole of `unicode_classes.h`."""
    values = table()
    cut = [tuple(values[start : start + BLOCK]) for start in range(0, POINTS, BLOCK)]
    blocks = sorted(set(cut), key=cut.index)
    place = {block: index for index, block in enumerate(blocks)}
    words = [
        sum(value << 2 * bit for bit, value in enumerate(block[start : start + 32]))
        for block in blocks
        for start in range(0, BLOCK, 32)
    ]
    numbers = {chr(point) for point, value in enumerate(values) if value == 2}
    newer = digits()
    if not numbers <= newer or len(blocks) > 256:
        raise SystemExit("Digits lacks a number of the regular expressions, or there are too many blocks.")
    only = [f"{{0x{start:X}, 0x{end:X}}}" for start, end in ranges(sorted(map(ord, newer - numbers)))]
    return "\n".join(
        [
            HEAD.format(version=tokenizers.__version__),
            array(f"uint8_t QSLM_CLASS_BLOCK[{len(cut)}]", [str(place[block]) for block in cut]),
            array(f"uint64_t QSLM_CLASS_WORD[{len(words)}]", [f"0x{word:X}" for word in words]),
            "// Ranges of what the pre-tokenizer Digits takes for a number beside those above: its Unicode is newer.",
            array(f"uint32_t QSLM_NEWER_NUMBERS[{len(only)}][2]", only),
            "#endif\n",
        ]
    )


if __name__ == "__main__":
    for name, text in (("unicode_classes.h", classes()), ("unicode_nfc.h", nfc())):
        (FOLDER / name).write_text(text, encoding="utf-8")
