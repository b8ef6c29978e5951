"""`qslm export`: a packed model as an image for a device."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qslm.cli.options import Json
from qslm.cli.output import print_json, print_table
from qslm.folders import named


def export(
    model: Annotated[str, typer.Argument(help="The folder of a packed model.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder to write.", show_default=False, parser=named, metavar="DIRECTORY"
        ),
    ],
    target: Annotated[
        str, typer.Option("--target", help="generic, aarch64-linux, mps2-an386 (Cortex-M4) or mps2-an500 (Cortex-M7).")
    ] = "generic",
    as_json: Json = False,
) -> None:
    """Write a packed model as one image for flash, with the C header and the assembly that link it.

    Example: [bold]qslm export runs/demo/artifact --target mps2-an386 -o export[/bold]
    """
    from qslm.runtime.export import export as export_model
    from qslm.runtime.export import find_target
    from qslm.units import format_bytes

    found = export_model(model, output, find_target(target))
    if as_json:
        print_json({"model": model, "output": str(output)} | asdict(found))
        return
    needs = [
        ("flash", found.flash, found.target.flash),
        ("  the image", found.image_bytes, None),
        ("RAM", found.ram, found.target.ram),
        ("  the engine, one token at a time", found.memory_bytes, None),
        ("    of it carried from token to token", found.state_bytes, None),
        ("  the tokenizer", found.tokenizer_bytes, None),
    ]
    rows = [[name, format_bytes(needed), format_bytes(there) if there else ""] for name, needed, there in needs]
    print_table(["memory", "needed", f"{found.target.name} has"], rows, f"{model}: {found.target.about}")
