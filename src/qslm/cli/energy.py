"""`qslm energy`: what a model computes and moves for a token, and what that costs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qslm.cli.opening import open_task
from qslm.cli.options import BinaryEmbedding, Checkpoint, Data, File, Json, Threads, Tokenizer, use_threads
from qslm.cli.output import print_json, print_table
from qslm.cli.progress import Listener

if TYPE_CHECKING:
    from qslm.anatomy import Anatomy
    from qslm.energy import Placement, Table, Terms
    from qslm.evaluation import Row
    from qslm.loading.checkpoint import Checkpoint as Loaded

TIMES = (5, 7, 10)  # time steps of which the bound is told
PARTS = ("compute", "memory", "total", "derived")
NOT_ASKED = "Power was not asked for: --power."


def energy(
    checkpoint: Checkpoint,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="wikitext2, sst2, text or labelled: what runs through the model; by default what suits it.",
            show_default=False,
        ),
    ] = None,
    file: File = None,
    data: Data = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="About so many tokens of calibration text.")] = 1024,
    table: Annotated[
        Path | None,
        typer.Option("--table", help="Energies of your own, as JSON; 45 nm by default.", show_default=False),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Account as if every matrix had this format, such as int4-g64; by default those of the model.",
            show_default=False,
        ),
    ] = None,
    activations: Annotated[
        str, typer.Option("--activations", help="What float matrices read and write: float16 or float32.")
    ] = "float16",
    study: Annotated[
        Path | None,
        typer.Option("--study", help="Account for every candidate of this run folder too.", show_default=False),
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", help="Where the weights lie: a memory of the table, such as DRAM or 'SRAM 1MB'.")
    ] = "DRAM",
    sums: Annotated[
        str, typer.Option("--sums", help="Where sums of spikes lie between time steps: registers, or a memory.")
    ] = "registers",
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer, not only the blocks.")] = False,
    power: Annotated[bool, typer.Option("--power", help="Measure real energy too, where the machine can.")] = False,
    tokenizer: Tokenizer = None,
    binary_embedding: BinaryEmbedding = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Count what a model computes and moves, and account for its energy, beside integers of the same bits and FP16.

    Examples: [bold]qslm energy spikegpt-mini --format int4-g64[/bold]

    [bold]qslm energy spikegpt-mini --study runs/demo[/bold]

    [bold]qslm energy runs/demo/artifact --table my-chip.json --tokens 2048 --json[/bold]
    """
    use_threads(threads)
    from qslm.allocation import Allocation
    from qslm.energy import Terms, bound, find_counters, measure_call, meter_calls, per_token, statement, task_calls
    from qslm.loading.outline import read_outline

    prices, placement = _prices(table, memory, sums, activations)
    rows = [] if study is None else _candidates(study)
    bounds = [bound(prices, steps) for steps in TIMES]
    with Listener() as progress:
        loaded, made = open_task(
            checkpoint,
            task or _suitable(checkpoint),
            tokenizer=tokenizer,
            binary_embedding=binary_embedding,
            data=data,
            file=file,
            context=None,
            windows=None,
            progress=progress,
        )
        anatomy = read_outline(checkpoint, binary_embedding).anatomy  # spiking layers have no sites of their own
        terms = _terms(loaded, anatomy, form, activations)
        held = [Terms.of(Allocation.from_json(anatomy, row.allocation), activations) for row in rows]
        loaded.model.eval()
        calls = task_calls(loaded.model, made, tokens)
        meter = meter_calls(loaded.model, calls, tokens)
        counters = find_counters() if power else None
        measured = None if counters is None else measure_call(loaded.model, calls[0], counters)
    result = {
        "checkpoint": loaded.source or checkpoint,
        "task": made.name,
        **statement(meter, anatomy, prices, terms, placement),
        "candidates": [
            _described(row) | per_token(meter.layers, prices, its, placement)
            for row, its in zip(rows, held, strict=True)
        ],
        "bounds": [vars(one) | {"most": one.most, "nonzero": one.nonzero} for one in bounds],
        "power": None if measured is None else vars(measured),
        "power_missing": [NOT_ASKED] if counters is None else list(counters.missing),
    }
    if as_json:
        print_json(result)
    else:
        _print(result, [str(one) for one in bounds], every=layers)


def _prices(table: Path | None, memory: str, sums: str, activations: str) -> tuple["Table", "Placement"]:
    """The table, and where the bytes lie in it. Raises EnergyError on a memory or activations that there are not."""
    from qslm.energy import REGISTERS, Placement, load_table
    from qslm.errors import EnergyError

    if activations not in ("float16", "float32"):
        raise EnergyError(f"{activations[:40]!r} is no type of activations.", "Give float16 or float32.")
    prices, placement = load_table(table), Placement(weights=memory, rows=memory, sums=sums)
    for level in set(vars(placement).values()) - {REGISTERS}:
        prices.byte(level)
    return prices, placement


def _suitable(checkpoint: str) -> str:
    from qslm.loading.outline import read_outline

    return "wikitext2" if read_outline(checkpoint).classes is None else "sst2"


def _terms(loaded: "Loaded", anatomy: "Anatomy", form: str | None, activations: str) -> "Terms":
    """How the numbers are held: as the model file has them, or as --format says."""
    from qslm.allocation import Allocation
    from qslm.energy import Terms
    from qslm.errors import EnergyError
    from qslm.formats import Format
    from qslm.spiking.layer import RoundedLayer

    if form is not None:
        if any(isinstance(one, RoundedLayer) for one in loaded.model.modules()):
            raise EnergyError(
                f"{loaded.name} holds integers already, and --format {form[:40]} would count them as others.",
                "Leave --format out, or give the network that it was made of.",
            )
        return Terms.of(Allocation.uniform(anatomy, Format.parse(form)), activations)
    if loaded.allocation is not None:
        return Terms.of(Allocation.from_json(anatomy, loaded.allocation), activations)
    return Terms.of(Allocation.float32(anatomy), activations)


def _candidates(run: Path) -> list["Row"]:
    """What a study measured to the end, in its order. Raises LedgerError, EnergyError where they read spike counts."""
    from qslm.errors import EnergyError
    from qslm.evaluation import Ledger
    from qslm.folders import LEDGER
    from qslm.formats import Format

    with Ledger.read(run / LEDGER) as ledger:
        rows = [row for row in ledger.rows("search") if row.evaluation.complete]
    if any(Format.parse(text).activations for row in rows for text in json.loads(row.allocation)["sites"].values()):
        raise EnergyError(
            f"The candidates of {run} read spike counts of other bits each, and this model is metered with one form.",
            f"Look into the report of the study, or {run}/energy.json: each was metered there.",
        )
    return rows


def _described(row: "Row") -> dict[str, Any]:
    """What a study measured of a candidate."""
    found = row.evaluation
    named = {"number": row.number, "key": row.key, "metric": found.metric}
    return {**named, "value": found.value, "bytes": found.footprint_file}


def _print(result: dict[str, Any], bounds: list[str], *, every: bool) -> None:
    from qslm.energy import SPELLED

    rows = [
        [one["scenario"], SPELLED[one["machine"]], *(_micro(one[f"{part}_pj"], one) for part in PARTS)]
        for one in result["accounts"]
    ]
    heads = ["pass", "machine", *(f"{part}, uJ/token" for part in PARTS)]
    title = f"{result['checkpoint']}: {result['tokens']:,} tokens of {result['task']} metered, {result['table']}"
    print_table(heads, rows, title, texts=2)
    for scenario in dict.fromkeys(one["scenario"] for one in result["accounts"]):
        columns = [(one, part) for one in result["accounts"] for part in PARTS[:2] if one["scenario"] == scenario]
        heads = [f"{SPELLED[one['machine']]}: {part}" for one, part in columns]
        heads = ["layer" if every else "block", "fires", "zero inputs", *heads]
        print_table(heads, _rows(result, columns, every), f"{scenario}, uJ/token")
    if result["candidates"]:
        _print_candidates(result["candidates"])
    print(f"Weights lie in {result['weights_in']}; activations of float matrices count as {result['activations']}.")
    print(
        f"Of the multiply-accumulates of dense matrices {result['zero_share']:.1%} met a zero and were skipped, "
        f"{result['spike_share']:.1%} were accumulates of spikes."
    )
    if result["not_counted"]:
        print(f"Not counted, as their kind is not known or they did not run: {', '.join(result['not_counted'])}.")
    for text in bounds:
        print(f"{text}.")
    if result["power"] is not None:
        power = result["power"]
        print(
            f"Measured by {', '.join(power['counters'])}: {power['joules_per_token'] * 1e6:,.1f} uJ/token "
            f"({power['low'] * 1e6:,.1f} to {power['high'] * 1e6:,.1f}), "
            f"idle of {power['idle_watts']:.1f} W subtracted."
        )
    elif result["power_missing"]:
        print(f"No power was measured. {' '.join(result['power_missing'])}")


def _print_candidates(candidates: list[dict[str, Any]]) -> None:
    """From the least energy of decoding on."""
    from qslm.report.record import spell_value
    from qslm.units import format_bytes

    rows = []
    for one in sorted(candidates, key=lambda one: one["decode"]["total_pj"]):
        decode, prefill = (one[name] for name in ("decode", "prefill"))
        rows.append(
            [
                f"{one['number']}",
                spell_value(one["metric"], one["value"]),
                format_bytes(one["bytes"]),
                *(f"{decode[f'{part}_pj'] / 1e6:,.3f}" for part in PARTS[:3]),
                f"{prefill['total_pj'] / 1e6:,.3f}",
            ]
        )
    heads = ["candidate", candidates[0]["metric"], "file", *(f"decode: {part}" for part in PARTS[:3]), "prefill: total"]
    print_table(heads, rows, "the study's candidates as they ran, uJ/token, with the activity of this model")


def _rows(result: dict[str, Any], columns: list[tuple[Any, str]], every: bool) -> list[list[str]]:
    """One row a layer or a block: what was measured, its least and its most, and the energy a token in each account."""
    groups: dict[str, list[str]] = {}
    for path, measured in result["layers"].items():
        groups.setdefault(path if every else measured["block"], []).append(path)
    return [
        [
            name,
            *(_span([result["layers"][path][kind] for path in paths]) for kind in ("firing_rate", "zero_inputs")),
            *(_micro(sum(one["layers"][path][f"{part}_pj"] for path in paths), one) for one, part in columns),
        ]
        for name, paths in groups.items()
    ]


def _span(shares: list[float | None]) -> str:
    known = [share for share in shares if share is not None]
    if not known:
        return ""
    low, high = f"{min(known):.1%}", f"{max(known):.1%}"
    return low if low == high else f"{low} to {high}"


def _micro(pj: float, account: dict[str, Any]) -> str:
    return f"{pj / account['scenario_tokens'] / 1e6:,.3f}"
