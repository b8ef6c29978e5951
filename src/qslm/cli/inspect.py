"""`qslm inspect`: the anatomy of a network, and what it takes at every bit width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qslm.cli.options import BinaryEmbedding, Checkpoint, Json, Tokenizer
from qslm.cli.output import console, print_json, print_table
from qslm.cli.progress import Listener
from qslm.cli.storage import WIDTHS, Group, Signs, Symmetric, Vectors, template, vector_format

if TYPE_CHECKING:
    from rich.tree import Tree

    from qslm.anatomy import Anatomy, Site


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
    from qslm.anatomy import find_anatomy
    from qslm.loading import load_checkpoint

    formats = template(group, symmetric), vector_format(vectors)
    with Listener() as progress:
        options: Any = {"tokenizer": tokenizer, "binary_embedding": binary_embedding, "progress": progress}
        loaded = load_checkpoint(checkpoint, **options)
    anatomy = find_anatomy(loaded.model)
    widths = [_width(anatomy, bits, *formats, signs) for bits in WIDTHS]
    if as_json:
        print_json(_described(loaded, anatomy, widths))
        return
    _print_tree(loaded, anatomy)
    _print_widths(widths, f"every matrix at one width ({formats[0]} and alike, vectors {vectors})")


def _width(anatomy: "Anatomy", bits: int, kind: Any, vectors: Any, signs: bool) -> dict[str, Any]:
    """What the whole network takes at one width (32 is float32), truly and by the paper's convention."""
    from dataclasses import replace

    from qslm.allocation import Allocation
    from qslm.report.paper import paper_bytes

    allocation = plain = Allocation.float32(anatomy)
    if bits < 32:
        narrow = replace(kind, bits=bits)
        allocation = Allocation.uniform(anatomy, narrow, vectors=vectors, signs=signs)
        plain = Allocation.uniform(anatomy, narrow, signs=False)
    footprint, paper = allocation.footprint(), paper_bytes(plain)
    return {
        "bits": bits,
        "file_bytes": footprint.file,
        "tensor_bytes": footprint.tensors,
        "scale_bytes": footprint.scales,
        "saving": 1 - footprint.tensors / anatomy.float32_bytes,
        "paper_bytes": paper,
        "paper_saving": 1 - paper / anatomy.float32_bytes,
    }


def _described(loaded: Any, anatomy: "Anatomy", widths: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(site.numel for site in anatomy.sites)
    return {
        "checkpoint": loaded.name,
        "file_bytes": loaded.file_bytes,
        "parameters": total,
        "float32_bytes": anatomy.float32_bytes,
        "blocks": [_block(anatomy, block, total) for block in anatomy.blocks],
        "widths": widths,
    }


def _block(anatomy: "Anatomy", block: str, total: int) -> dict[str, Any]:
    count = sum(site.numel for site in anatomy.sites_of(block))
    modules = [_module(anatomy, block, module, total) for module in anatomy.modules(block)]
    return {"block": block, "parameters": count, "share": count / total, "modules": modules}


def _module(anatomy: "Anatomy", block: str, module: str, total: int) -> dict[str, Any]:
    sites = anatomy.sites_of(block, module)
    count = sum(site.numel for site in sites)
    described = [
        {
            "site": site.name,
            "shape": list(site.shape),
            "parameters": site.numel,
            "kind": site.kind,
            "binarized": site.binarized,
            "aliases": list(site.aliases),
        }
        for site in sites
    ]
    return {"module": module, "parameters": count, "share": count / total, "sites": described}


def _print_tree(loaded: Any, anatomy: "Anatomy") -> None:
    from rich.text import Text
    from rich.tree import Tree

    from qslm.units import format_bytes

    total = sum(site.numel for site in anatomy.sites)
    head = f"{loaded.name}: {total:,} parameters, {format_bytes(anatomy.float32_bytes)} in float32"
    tree = Tree(Text(f"{head}, file {format_bytes(loaded.file_bytes)}"))
    for block in anatomy.blocks:
        branch = tree.add(_label(block, anatomy.sites_of(block), total, "bold"))
        for module in anatomy.modules(block):
            _add_module(branch, module, anatomy.sites_of(block, module), total)
    console().print(tree)


def _add_module(branch: "Tree", module: str, sites: "Sequence[Site]", total: int) -> None:
    twig = branch.add(_label(module, sites, total))
    for site in sites:
        shape = " x ".join(map(str, site.shape)) or "scalar"
        marks = ["binarized"] * site.binarized + ["buffer"] * (site.kind == "buffer")
        marks += [f"also {alias}" for alias in site.aliases]
        twig.add(_dim(f"{site.name}  {shape}" + "".join(f", {mark}" for mark in marks)))


def _label(name: str, sites: "Sequence[Site]", total: int, style: str = "") -> Any:
    from rich.text import Text

    count = sum(site.numel for site in sites)
    return Text.assemble((name, style), f"  {count:,}  {100 * count / max(total, 1):.2f} %")


def _dim(text: str) -> Any:
    from rich.text import Text

    return Text(text, style="dim")


def _print_widths(widths: list[dict[str, Any]], title: str) -> None:
    from qslm.units import MB, MiB

    rows = [
        [
            str(w["bits"]),
            f"{w['file_bytes']:,}",
            f"{w['file_bytes'] / MB:,.3f}",
            f"{w['file_bytes'] / MiB:,.3f}",
            f"{100 * w['saving']:.2f} %",
            f"{w['paper_bytes'] / MB:,.3f}",
            f"{100 * w['paper_saving']:.2f} %",
        ]
        for w in widths
    ]
    print_table(["bits", "file bytes", "MB", "MiB", "saving", "paper MB", "paper saving"], rows, title)
    print("saving: all tensors with scales and zero points, against float32.")
    print("paper: weights alone, every matrix at that width, vectors in float32.")
