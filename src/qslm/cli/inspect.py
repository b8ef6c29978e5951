"""`qslm inspect`: the anatomy of a network, and what it takes at every bit width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from qslm.cli.opening import open_checkpoint
from qslm.cli.options import BinaryEmbedding, Checkpoint, Json, Tokenizer
from qslm.cli.output import console, print_json, print_table
from qslm.cli.progress import Listener
from qslm.cli.storage import Group, Signs, Symmetric, Vectors, parse_precisions, template, vector_format

if TYPE_CHECKING:
    from qslm.anatomy import Site
    from qslm.inspection import Inspection, Width
    from qslm.loading.checkpoint import Checkpoint as Loaded

NARROW = (32, 8, 4)  # widths of which the tree tells the bytes where the terminal is too narrow for all

Widths = Annotated[
    str | None,
    typer.Option(
        "--widths", help="Bit widths of the tree, such as 32,8,4; by default all that fit.", show_default=False
    ),
]


def inspect(
    checkpoint: Checkpoint,
    group: Group = "row",
    symmetric: Symmetric = False,
    vectors: Vectors = "float32",
    signs: Signs = True,
    widths: Widths = None,
    tokenizer: Tokenizer = None,
    binary_embedding: BinaryEmbedding = "auto",
    as_json: Json = False,
) -> None:
    """Show blocks, modules and sites with their parameters, and the bytes of the file at every bit width.

    Example: [bold]qslm inspect spikegpt-mini --group 64[/bold]
    """
    from qslm.inspection import inspect as look
    from qslm.loading.outline import read_outline

    asked = None if widths is None else _parse_widths(widths)
    stored_as = template(group, symmetric)
    with Listener() as progress:
        loaded = open_checkpoint(checkpoint, tokenizer=tokenizer, binary_embedding=binary_embedding, progress=progress)
    anatomy = read_outline(checkpoint, binary_embedding).anatomy  # spiking layers have no sites of their own
    found = look(anatomy, template=stored_as, vectors=vector_format(vectors), signs=signs)
    if as_json:
        print_json({"checkpoint": checkpoint, "file_bytes": loaded.file_bytes, **found.to_dict()})
        return
    _print_tree(loaded, found, asked)
    _print_widths(found.widths, f"every matrix at one width ({stored_as} and alike, vectors {vectors})")


def _parse_widths(text: str) -> tuple[int, ...]:
    """Widths of the tree, 32 among them if it is asked for. Raises FormatError."""
    words = text.replace(",", " ").split()
    rest = [word for word in words if word != "32"]
    known = parse_precisions(" ".join(rest), "--widths") if rest or not words else ()
    return tuple(sorted({*known, *([32] if "32" in words else [])}, reverse=True))


def _print_tree(loaded: "Loaded", found: "Inspection", asked: tuple[int, ...] | None) -> None:
    from qslm.units import format_bytes

    shown = asked or tuple(width.bits for width in found.widths)
    rows = _rows(found, shown)
    if asked is None and _wide(rows) > console().width:
        shown = NARROW
        rows = _rows(found, shown)
    anatomy = found.anatomy
    head = f"{loaded.name}: {anatomy.float32_bytes // 4:,} parameters, {format_bytes(anatomy.float32_bytes)} in float32"
    heads = ["block, module, site", "shape", "parameters", "share", *(f"{bits} bit" for bits in shown)]
    print_table(heads, rows, f"{head}, file {format_bytes(loaded.file_bytes)}", texts=2)
    print("Under each width: bytes with scales and zero points. --widths shows others, --json has them all.")


def _wide(rows: "Sequence[Sequence[str]]") -> int:
    """The characters that a table of these rows takes across, three between columns."""
    return sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True)) + 1


def _rows(found: "Inspection", shown: "Sequence[int]") -> list[list[str]]:
    """The lines of the tree, with the bytes at the widths that are shown."""
    anatomy, rows = found.anatomy, []
    for block in anatomy.blocks:
        rows.append(_row(found, block, anatomy.sites_of(block), shown))
        for module in anatomy.modules(block):
            sites = anatomy.sites_of(block, module)
            rows.append(_row(found, f"  {module}", sites, shown))
            rows += [_row(found, f"    {site.name}", (site,), shown, _describe(site)) for site in sites]
    return rows


def _row(found: "Inspection", name: str, sites: "Sequence[Site]", shown: "Sequence[int]", shape: str = "") -> list[str]:
    count = sum(site.numel for site in sites)
    sizes = [f"{found.size(sites, bits):,}" for bits in shown]
    return [name, shape, f"{count:,}", f"{100 * found.share(sites):.2f} %", *sizes]


def _describe(site: "Site") -> str:
    shape = " x ".join(map(str, site.shape)) or "scalar"
    marks = ["binarized"] * site.binarized + ["buffer"] * (site.kind == "buffer")
    return ", ".join([shape, *marks, *(f"also {alias}" for alias in site.aliases)])


def _print_widths(widths: "Sequence[Width]", title: str) -> None:
    from qslm.units import MB, MiB

    rows = [
        [
            str(w.bits),
            f"{w.file_bytes:,}",
            f"{w.file_bytes / MB:,.3f}",
            f"{w.file_bytes / MiB:,.3f}",
            f"{100 * w.saving:.2f} %",
            f"{w.paper_bytes / MB:,.3f}",
            f"{100 * w.paper_saving:.2f} %",
        ]
        for w in widths
    ]
    print_table(["bits", "file bytes", "MB", "MiB", "saving", "paper MB", "paper saving"], rows, title)
    print("saving: all tensors with scales and zero points, against float32.")
    print("paper: weights alone, every matrix at that width, vectors in float32.")
