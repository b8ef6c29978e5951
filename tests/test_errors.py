"""Every message of our errors is a sentence, capital to full stop, both the problem and the remedy."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import qslm
from qslm import errors

SOURCES = sorted(Path(qslm.__file__).parent.rglob("*.py"))
OURS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.QslmError)}


def _texts(node: ast.expr, assigned: dict[str, list[ast.expr]]) -> Iterator[tuple[int, str]]:
    """The texts that an argument may be, with `X` for each value in them; one that is computed elsewhere gives none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        yield node.lineno, node.value
    elif isinstance(node, ast.JoinedStr):
        yield node.lineno, "".join(map(_piece, node.values))
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, assigned)
        yield from _texts(node.orelse, assigned)
    elif isinstance(node, ast.Name):
        for value in assigned.get(node.id, []):
            yield from _texts(value, {})


def _piece(node: ast.expr) -> str:
    """A piece of an f-string; the `problem` of another error is a sentence itself."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    return "X." if isinstance(inner, ast.Attribute) and inner.attr == "problem" else "X"


def _messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    assigned: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OURS:
            for argument in node.args:
                yield from _texts(argument, assigned)


def _is_sentence(text: str) -> bool:
    """Whether it ends with a full stop, and starts with a capital or a name: an option, `code`, a_name, a file."""
    return text[-1] == "." and re.match(r"[A-Z`-]|[a-z]+(_\w+|\.json|\(\))", text) is not None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_messages_are_sentences(path: Path) -> None:
    wrong = [(line, text) for line, text in _messages(ast.parse(path.read_text())) if not _is_sentence(text)]
    assert not wrong


def test_messages_are_found() -> None:
    found = [text for path in SOURCES for _, text in _messages(ast.parse(path.read_text()))]
    assert len(found) > 200


@pytest.mark.parametrize("text", ["see to_json()", "No stop", "lower.", "X is no number"])
def test_fragments_are_no_sentences(text: str) -> None:
    assert not _is_sentence(text)
