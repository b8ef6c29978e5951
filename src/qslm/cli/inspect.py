"""`qslm inspect`: the anatomy of a network, and what it takes at every bit width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qslm.cli.opening import open_checkpoint
from qslm.cli.options import BinaryEmbedding, Checkpoint, Json, Tokenizer
from qslm.cli.output import print_json, print_table
from qslm.cli.progress import Listener
from qslm.cli.storage import Group, Signs, Symmetric, Vectors, template, vector_format

if TYPE_CHECKING:
    from qslm.anatomy import Site
    from qslm.inspection import Inspection, Width
    from qslm.loading import Checkpoint as Loaded

SHOWN = (32, 8, 4)  # widths of which the tree tells the bytes


def inspect(
    checkpoint: Checkpoint,
    group: Group = "row",
    symmetric: Symmetric = False,
    vectors: Vectors = "float32",
    signs: Signs = True,
    tokenizer: Tokenizer = None,
    binary_embedding: BinaryEmbedding = "auto",
    as_json: Json = False,
) -> None:
    """Show blocks, modules and sites with their parameters, and the bytes of the file at every bit width.

    Example: [bold]qslm inspect spikegpt-mini --group 64[/bold]
    """
    from qslm.inspection import inspect as look

    stored_as = template(group, symmetric)
    with Listener() as progress:
        loaded = open_checkpoint(checkpoint, tokenizer=tokenizer, binary_embedding=binary_embedding, progress=progress)
    found = look(loaded.model, template=stored_as, vectors=vector_format(vectors), signs=signs)
    if as_json:
        print_json({"checkpoint": checkpoint, "file_bytes": loaded.file_bytes, **found.to_dict()})
        return
    _print_tree(loaded, found)
    _print_widths(found.widths, f"every matrix at one width ({stored_as} and alike, vectors {vectors})")


def _print_tree(loaded: "Loaded", found: "Inspection") -> None:
    from qslm.units import format_bytes

    anatomy = found.anatomy
    rows = []
    for block in anatomy.blocks:
        rows.append(_row(found, block, anatomy.sites_of(block)))
        for module in anatomy.modules(block):
            sites = anatomy.sites_of(block, module)
            rows.append(_row(found, f"  {module}", sites))
            rows += [_row(found, f"    {site.name}", (site,), _describe(site)) for site in sites]
    head = f"{loaded.name}: {anatomy.float32_bytes // 4:,} parameters, {format_bytes(anatomy.float32_bytes)} in float32"
    heads = ["block, module, site", "shape", "parameters", "share", *(f"{bits} bit" for bits in SHOWN)]
    print_table(heads, rows, f"{head}, file {format_bytes(loaded.file_bytes)}", texts=2)
    print(f"{SHOWN[0]} bit to {SHOWN[-1]} bit: bytes with scales and zero points; --json has them at every width.")


def _row(found: "Inspection", name: str, sites: "Sequence[Site]", shape: str = "") -> list[str]:
    count = sum(site.numel for site in sites)
    sizes = [f"{found.size(sites, bits):,}" for bits in SHOWN]
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
