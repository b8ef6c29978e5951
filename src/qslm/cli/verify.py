"""`qslm verify`: check a packed model byte by byte."""

from pathlib import Path
from typing import Annotated

import typer

from qslm.cli.options import Json
from qslm.cli.output import print_json


def verify(
    folder: Annotated[
        Path, typer.Argument(help="The folder of a packed model, or its model.safetensors.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Check a packed model: digest, header, shapes, codes, and the bytes that were promised.

    Example: [bold]qslm verify runs/demo/artifact[/bold]
    """
    from qslm import artifact
    from qslm.errors import ArtifactError
    from qslm.loading.locating import shipped_names

    if str(folder) in shipped_names() and not folder.exists():
        raise ArtifactError(
            f"{folder} ships as a checkpoint of floats, not as a packed model.",
            f"Pack it first: qslm search {folder} ... -o RUN, then: qslm verify RUN/artifact.",
        )
    checks = artifact.verify(folder)
    if as_json:
        print_json({"folder": str(folder), "checks": checks})
    else:
        for check in checks:
            print(f"ok  {check}")
