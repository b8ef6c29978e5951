"""The house rule of DESIGN.md: a file imports only from lower floors, or from its own folder.

A room is a folder of `src/qslm` or one of its top-level modules. Every import statement counts, wherever it
stands: at the top, inside a function, under TYPE_CHECKING, relative, or a literal `import_module("qslm...")`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "qslm"
DOOR = "__init__"  # `import qslm` itself: it re-exports the public names, so it stands above the house

FLOORS = {
    "errors": 1, "progress": 1, "digest": 1, "finite": 1, "_native": 1,
    "models": 2, "formats": 2, "data": 2, "anatomy": 2, "units": 2, "locking": 2, "folders": 2,
    "tasks": 3, "spiking": 3, "allocation": 3, "budget": 3, "packed": 3,
    "quantizers": 4, "artifact": 4, "search": 4, "calibration": 4,
    "evaluation": 5, "runtime": 5, "training": 5, "conversion": 5, "energy": 5, "loading": 5,
    "inspection": 5,
    "study": 6, "spike": 6,
    "report": 7,
    "cli": 8,
    DOOR: 9, "__main__": 10,
}  # fmt: skip


def room_of(file: Path, source: Path) -> str:
    """The folder or the top-level module that `file` belongs to."""
    parts = file.relative_to(source).parts
    return parts[0] if len(parts) > 1 else file.stem


def package_of(file: Path, source: Path) -> list[str]:
    """The dotted package that relative imports of `file` start from."""
    return ["qslm", *file.relative_to(source).parts[:-1]]


def absolute_targets(node: ast.AST, package: list[str]) -> list[str]:
    """The dotted names that one syntax node imports; `from qslm import x` counts as `qslm.x`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        base = base + (node.module.split(".") if node.module else [])
        return [".".join([*base, alias.name]) for alias in node.names]
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
        "import_module",
        "__import__",
    ):
        return [str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return []


def imported_rooms(file: Path, source: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the room of every import of qslm that `file` makes."""
    package = package_of(file, source)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        for target in absolute_targets(node, package):
            head, *rest = target.split(".")
            if head == "qslm":
                room = rest[0] if rest else DOOR
                is_module = room in FLOORS or (source / room).is_dir() or (source / f"{room}.py").exists()
                yield getattr(node, "lineno", 0), room if is_module else DOOR


def python_files(source: Path) -> list[Path]:
    return sorted(source.rglob("*.py"))


def violations(source: Path) -> list[str]:
    """Every import that does not go down, as `file:line: ...`."""
    found = []
    for file in python_files(source):
        room = room_of(file, source)
        for line, other in imported_rooms(file, source):
            if other != room and FLOORS.get(other, 99) >= FLOORS.get(room, 0):
                where, levels = f"{file.relative_to(source)}:{line}", (FLOORS.get(room), FLOORS.get(other))
                found.append(f"{where}: {room} imports {other} (floors {levels[0]} and {levels[1]})")
    return found


def test_every_file_has_a_floor():
    files = python_files(SOURCE)
    assert len(files) > 10
    homeless = [str(f.relative_to(SOURCE)) for f in files if room_of(f, SOURCE) not in FLOORS]
    assert homeless == []


def test_imports_go_down_only():
    assert violations(SOURCE) == []


def test_some_imports_are_seen():
    seen = {room for file in python_files(SOURCE) for _, room in imported_rooms(file, SOURCE)}
    assert {"errors", "progress"} <= seen


@pytest.mark.parametrize(
    ("file", "code", "culprit"),
    [
        ("budget.py", "from qslm.tasks import statistics", "tasks"),
        ("budget.py", "from qslm import study", "study"),
        ("formats/format.py", "import qslm.cli.main", "cli"),
        ("formats/format.py", "from ..models import spikegpt", "models"),
        ("formats/format.py", "from .. import units", "units"),
        ("formats/deep/format.py", "from ... import artifact", "artifact"),
        ("tasks/task.py", "def f():\n    from qslm.evaluation.ledger import Ledger", "evaluation"),
        ("tasks/task.py", "if TYPE_CHECKING:\n    from qslm.report import page", "report"),
        ("tasks/task.py", "import importlib\nimportlib.import_module('qslm.study')", "study"),
        ("study.py", "import qslm", DOOR),
        ("study.py", "from qslm import evaluate", DOOR),
        ("evaluation/ledger.py", "from qslm.loading.checkpoint import load_model", "loading"),
    ],
)
def test_a_violation_is_seen(tmp_path, file, code, culprit):
    place = tmp_path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(code, encoding="utf-8")
    (found,) = violations(tmp_path)
    assert found.startswith(f"{file}:")
    assert f"imports {culprit} " in found


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("study.py", "import torch, qslm.budget\nfrom qslm.evaluation import ledger"),
        ("formats/format.py", "from . import packing\nfrom .packing import pack\nfrom qslm.formats import x"),
        ("cli/main.py", "from qslm.study import search"),
        ("__init__.py", "from qslm.study import search"),
    ],
)
def test_what_is_allowed_passes(tmp_path, file, code):
    place = tmp_path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(code, encoding="utf-8")
    assert violations(tmp_path) == []
