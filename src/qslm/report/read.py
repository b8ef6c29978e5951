"""A run folder as the values that a report shows."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qslm.allocation import Allocation
from qslm.errors import AllocationError, StudyError
from qslm.report.energy import Account, make_account
from qslm.report.record import Answer, Grid, Measured, Point, Record
from qslm.study import folder
from qslm.study.accounting import read_account
from qslm.study.judging import BASELINE
from qslm.study.recorded import Recorded
from qslm.study.telling import expected_value

COMMAND = "command.txt"  # what the command line leaves beside study.json
NOT_FINITE = math.inf  # study.json writes null where a number is not finite

Json = Mapping[str, Any]


def read_run(run: Path) -> Record:
    """Read study.json, selection.json and energy.json (absent where nothing was accepted) and the ledger.

    Raises StudyError or LedgerError when the folder holds no study, or a damaged one.
    """
    known = Recorded.read(run)
    chosen = run / folder.SELECTION
    selection = folder.read_json(chosen) if chosen.is_file() else None
    try:
        return _record(known, selection)
    except (KeyError, TypeError, ValueError, IndexError, AllocationError) as error:
        problem = f"{run} does not hold a whole study: {type(error).__name__}: {error}."
        raise StudyError(problem, folder.AGAIN) from error


def _record(known: Recorded, selection: Json | None) -> Record:
    study, task = known.study, known.task
    lines: list[Json] = study["tiers"]
    if not lines:
        raise StudyError(f"The study in {known.run} has measured nothing yet.", "Let the search run on.")
    key = None if selection is None else str(selection["selected"]["key"])
    texts = {row.key: row.allocation for row in known.rows}
    allocation = None if key is None else Allocation.from_json(known.anatomy, texts[key])
    baseline = _measured(lines[0])
    energy = None if key is None else read_account(known.run, key, str(study["checkpoint"]["digest"]))
    return Record(
        checkpoint=str(study["checkpoint"]["name"]),
        task=task.name,
        source=task.source,
        unit=task.unit,
        strategy=str(study["options"]["strategy"]),
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        limits=known.budget,
        baseline=baseline if selection is None else _measured(selection["baseline"]),
        selected=None if selection is None else _measured(selection["selected"]),
        saving=None if selection is None else float(selection["selected"]["saving"]),
        saving_file=None if selection is None else float(selection["selected"]["saving_file"]),
        answer=_answer(selection),
        points=tuple(_point(line, key, known, baseline.value, texts) for line in lines),
        grid=None if allocation is None else make_grid(allocation),
        energy=_account(known, energy, lines),
        provenance=tuple(_provenance(known, selection, allocation, energy)),
    )


def _account(known: Recorded, energy: Json | None, lines: list[Json]) -> Account | None:
    """What energy.json says; None where it holds no account. Raises StudyError when it is damaged."""
    if energy is None or "missing" in energy:
        return None
    keys = [str(line["key"]) if line["complete"] else None for line in lines]
    try:
        return make_account(energy, keys, known.anatomy.blocks)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{known.run / folder.ENERGY} holds no whole account: {type(error).__name__}: {error}."
        raise StudyError(problem, folder.AGAIN) from error


def _number(value: Any) -> float:
    return NOT_FINITE if value is None else float(value)


def _measured(line: Json) -> Measured:
    return Measured(_number(line["value"]), _number(line["low"]), _number(line["high"]), int(line["bytes"]))


def _answer(selection: Json | None) -> Answer:
    if selection is None:
        return Answer(None, None, None, "nothing accepted")
    found = selection["difference"]
    conclusion = str(found["conclusion"])
    return Answer(_number(found["loss"]), _number(found["low"]), _number(found["high"]), conclusion)


def _point(line: Json, chosen: str | None, known: Recorded, baseline: float, texts: Mapping[str, str]) -> Point:
    key, tier = str(line["key"]), str(line["tier"])
    measured, complete = _measured(line), bool(line["complete"])
    expected = expected_value(known.task, known.budget.kind, baseline, _number(line["loss"]))

    def loss(name: str) -> float | None:
        return None if tier == BASELINE else _number(line[name])

    return Point(
        int(line["number"]),
        tier,
        str(line["note"]),
        measured,
        measured.value if complete else expected,
        loss("loss"),
        loss("loss_low"),
        loss("loss_high"),
        loss("bound"),
        bool(line["quality_ok"]),
        bool(line["memory_ok"]),
        complete,
        int(line["units"]),
        key == chosen,
        summarize(Allocation.from_json(known.anatomy, texts[key])) if key in texts else "",
    )


def summarize(allocation: Allocation) -> str:
    """How many weights are in which format, the most first: `int4-row 82 %, sign 17 %`."""
    weights: Counter[str] = Counter()
    for site, fmt in allocation.items():
        weights[str(fmt)] += site.numel
    total = max(weights.total(), 1)
    return "\n".join(f"{name} {100 * count / total:.3g} %" for name, count in weights.most_common(6))


def make_grid(allocation: Allocation) -> Grid:
    """The mean bits per weight, without scales, of every module of every block, and what its sites are, in words."""
    anatomy = allocation.anatomy
    modules = tuple(dict.fromkeys(m for block in anatomy.blocks for m in anatomy.modules(block)))
    cells = [[_cell(allocation, block, module) for module in modules] for block in anatomy.blocks]
    bits = tuple(tuple(cell[0] for cell in row) for row in cells)
    return Grid(anatomy.blocks, modules, bits, tuple(tuple(cell[1] for cell in row) for row in cells))


def _cell(allocation: Allocation, block: str, module: str) -> tuple[float | None, str]:
    sites = allocation.anatomy.sites_of(block, module)
    count = sum(site.numel for site in sites)
    if count == 0:
        return None, ""
    mean = sum(site.numel * allocation[site.name].bits for site in sites) / count
    lines = (f"{site.name} {list(site.shape)}: {allocation[site.name]}" for site in sites)
    return round(mean, 1), "\n".join(lines)


def _provenance(
    known: Recorded, selection: Json | None, allocation: Allocation | None, energy: Json | None
) -> list[tuple[str, str]]:
    run, study = known.run, known.study
    checkpoint, identity, options = study["checkpoint"], study["identity"], study["options"]
    lines = [("checkpoint", f"{checkpoint['name']}, {int(checkpoint['bytes']):,} bytes, sha256 {checkpoint['digest']}")]
    lines += [("source of the data", known.task.source)] if known.task.source else []
    lines += [(f"{split} split", _split(study["task"], found)) for split, found in study["task"]["splits"].items()]
    lines += [(f"{split} data", f"sha256 {digest}") for split, digest in identity["data"].items()]
    lines.append(("options", ", ".join(f"{name} {_plain(value)}" for name, value in options.items())))
    lines.append(("budget", ", ".join(f"{name} {_plain(value)}" for name, value in study["budget"].items())))
    if selection is not None:
        digest = folder.packed_digest(run, selection, str(selection["selected"]["key"]))
        lines += [("packed model", f"sha256 {digest}"), ("work", _work(selection))]
    if allocation is not None:
        lines.append(("saving as the paper counts", f"{100 * allocation.paper_saving():.2f} % (weights alone)"))
    lines += [] if energy is None or "missing" not in energy else [("no account of energy", str(energy["missing"]))]
    lines += [(f"checked: {check['name']}", str(check["finding"])) for check in study["checks"]]
    versions = {"qslm": identity["code"]["qslm"], **identity["versions"], **identity["machine"]}
    lines.append(("versions and machine", ", ".join(f"{name} {value}" for name, value in versions.items())))
    command = run / COMMAND
    return [("command", command.read_text(encoding="utf-8").strip()), *lines] if command.is_file() else lines


def _split(task: Json, found: Json) -> str:
    details = [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in found.items() if name not in _COUNTS]
    counted = f"{int(found['units']):,} {task['unit']}s, {int(found['tokens']):,} tokens"
    return "; ".join([counted, *details])


_COUNTS = ("units", "tokens")


def _work(selection: Json) -> str:
    evaluations, tokens = int(selection["evaluations"]), int(selection["tokens_forwarded"])
    return f"{evaluations:,} evaluations, {tokens:,} tokens forwarded, {float(selection['seconds']):,.0f} seconds"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
