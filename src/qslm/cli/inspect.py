"""`qslm inspect`: the anatomy of a network, and what it takes at every bit width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qslm.cli.options import BinaryEmbedding, Checkpoint, Json, Tokenizer
from qslm.cli.output import console, print_json, print_table
from qslm.cli.progress import Listener
from qslm.cli.storage import Group, Signs, Symmetric, Vectors, template, vector_format

if TYPE_CHECKING:
    from rich.tree import Tree

    from qslm.anatomy import Anatomy, Site
    from qslm.inspection import Width


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
    from qslm.loading import load_checkpoint

    formats: Any = {"template": template(group, symmetric), "vectors": vector_format(vectors), "signs": signs}
    with Listener() as progress:
        opening: Any = {"tokenizer": tokenizer, "binary_embedding": binary_embedding, "progress": progress}
        loaded = load_checkpoint(checkpoint, **opening)
    found = look(loaded.model, **formats)
    if as_json:
        print_json({"checkpoint": loaded.name, "file_bytes": loaded.file_bytes, **found.to_dict()})
        return
    _print_tree(loaded, found.anatomy)
    _print_widths(found.widths, f"every matrix at one width ({formats['template']} and alike, vectors {vectors})")


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
