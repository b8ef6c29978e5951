"""The entry point of `qslm`; nothing heavy is imported before a verb needs it, so that help is quick."""

import codecs
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qslm.cli import (
    bench,
    data,
    demo,
    energy,
    eval,
    export,
    generate,
    inspect,
    search,
    select,
    sensitivity,
    spike,
    status,
    train,
    verify,
)
from qslm.cli.failures import BAD_INPUT, explain

VERBS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "inspect": inspect.inspect,
    "sensitivity": sensitivity.sensitivity,
    "search": search.search,
    "status": status.status,
    "select": select.select,
    "eval": eval.evaluate,
    "energy": energy.energy,
    "verify": verify.verify,
    "generate": generate.generate,
    "bench": bench.bench,
    "export": export.export,
    "spike": spike.spike,
    "data": data.data,
}


class Verbs(TyperGroup):
    """The group of verbs: turns every failure into one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; raise `typer.Exit` with the status that a failure has."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort):
                raise  # usage errors and exits: typer prints them itself
            raise typer.Exit(explain(error, ctx.invoked_subcommand or "")) from None


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"qslm {version('qslm')}")
        raise typer.Exit


app = typer.Typer(
    name="qslm",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="Start with [bold]qslm demo[/bold]. Each verb has its own [bold]--help[/bold].")
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fit a spike-driven language model into a memory budget, and prove what it costs."""


for _name, _verb in VERBS.items():
    app.command(_name, no_args_is_help=_name not in ("demo", "data"))(_verb)
app.add_typer(train.app, name="train")


def run() -> None:
    """Run the command line and leave with its exit status.

    Threads that wait for one another sleep: where they spin, as OpenMP's do by default, a second busy program on the
    machine makes everything ten times slower. The setting counts when PyTorch is loaded, which is later.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    codecs.register_error("qslm.escape", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="qslm.escape")
    sys.exit(_flushed(_status()))


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Write what an output's encoding lacks as JSON does, \\u00e9 for e acute: so JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _status() -> int:
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None) * BAD_INPUT
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, "")
    return 0


def _flushed(status: int) -> int:
    """Write out what stdout still holds now, where a full disk or a closed pipe can be answered."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return explain(error, "")
    return status
