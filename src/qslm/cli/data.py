"""`qslm data`: which data is found, and how much."""

from typing import TYPE_CHECKING, Any

from qslm.cli.options import Data, Json
from qslm.cli.output import print_json, print_table
from qslm.cli.progress import Listener

if TYPE_CHECKING:
    from qslm.data.overview import Finding


def data(data: Data = None, as_json: Json = False) -> None:
    """Show where the published data is found, and how much there is.

    Sources in this order: --data or QSLM_DATA, the Hugging Face Hub, and for language modelling a text corpus
    from the package registry.

    Example: [bold]qslm data --data ~/data[/bold]
    """
    from qslm.data.overview import SPLITS, describe_data

    with Listener() as progress:
        found = describe_data(data, progress)
    if as_json:
        print_json([_described(one, SPLITS) for one in found])
        return
    rows = [[one.task, str(one.source or "not found"), *_sizes(one, len(SPLITS)), one.unit] for one in found]
    print_table(["task", "source", *SPLITS, "counted in"], rows, texts=2)


def _sizes(finding: "Finding", splits: int) -> list[str]:
    return [f"{size:,}" for size in finding.sizes] or ["-"] * splits


def _described(finding: "Finding", splits: tuple[str, ...]) -> dict[str, Any]:
    source = finding.source
    return {
        "task": finding.task,
        "source": None if source is None else str(source),
        "in_domain": None if source is None else source.in_domain,
        "unit": finding.unit,
        **dict(zip(splits, finding.sizes, strict=False)),
    }
