"""`qslm train`: networks of one's own, resumable to the step."""

from pathlib import Path
from typing import Annotated, Any

import typer

from qslm.cli.opening import open_checkpoint
from qslm.cli.options import Data, Threads, Tokenizer, use_threads
from qslm.cli.progress import Listener
from qslm.folders import check_ahead, named
from qslm.training import ClassifierSettings, LanguageModelSettings
from qslm.training.settings import LARGEST_DROPOUT

app = typer.Typer(
    help="Train a SpikeGPT: a language model, or a classifier from it. The same command goes on after a stop.",
    no_args_is_help=True,
)

Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="Folder of the checkpoint.", show_default=False, parser=named, metavar="DIRECTORY"
    ),
]
Rate = Annotated[float, typer.Option("--rate", min=0.0, help="Peak learning rate.")]
Dropout = Annotated[float, typer.Option("--dropout", min=0.0, max=LARGEST_DROPOUT, help="Share of values dropped.")]
WarmUp = Annotated[int, typer.Option("--warmup-steps", min=0, help="Steps in which the learning rate grows.")]
Decay = Annotated[float, typer.Option("--weight-decay", min=0.0, help="Weight decay of the matrices.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same network.")]


@app.command(no_args_is_help=True)
def lm(
    output: Output,
    data: Data = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Tokens to train on in all.")
    ] = LanguageModelSettings.tokens,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Optimizer steps, in place of --tokens.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows of a step.")] = LanguageModelSettings.batch,
    context: Annotated[
        int, typer.Option("--context", min=2, help="Tokens of a window.")
    ] = LanguageModelSettings.context,
    width: Annotated[int, typer.Option("--width", min=1, help="Width of the network.")] = LanguageModelSettings.width,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Number of blocks.")] = LanguageModelSettings.layers,
    vocabulary: Annotated[
        int, typer.Option("--vocabulary", min=258, help="Words of the tokenizer.")
    ] = LanguageModelSettings.vocabulary,
    rate: Rate = LanguageModelSettings.peak_rate,
    warmup_steps: WarmUp = LanguageModelSettings.warmup_steps,
    weight_decay: Decay = LanguageModelSettings.weight_decay,
    dropout: Dropout = LanguageModelSettings.dropout,
    seed: Seed = LanguageModelSettings.seed,
    threads: Threads = None,
) -> None:
    """Train a language model on WikiText-2, with a tokenizer of its own.

    Example: [bold]qslm train lm -o my-model --width 128 --layers 4 --tokens 2000000[/bold]
    """
    check_ahead(output, "training")
    use_threads(threads)
    from qslm.training import train_lm

    settings = LanguageModelSettings(
        output=output,
        data=data,
        width=width,
        layers=layers,
        vocabulary=vocabulary,
        context=context,
        batch=batch,
        tokens=tokens if steps is None else steps * batch * context,
        peak_rate=rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        dropout=dropout,
        seed=seed,
    )
    with Listener() as progress:
        print(train_lm(settings, progress))


@app.command(no_args_is_help=True)
def classifier(
    output: Output,
    init: Annotated[
        str | None,
        typer.Option("--init", help="Checkpoint to start from; a new network without.", show_default=False),
    ] = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, help="Passes over SST-2 train.")
    ] = ClassifierSettings.epochs,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sentences of a step.")] = ClassifierSettings.batch,
    rate: Rate = ClassifierSettings.peak_rate,
    warmup_steps: WarmUp = ClassifierSettings.warmup_steps,
    weight_decay: Decay = ClassifierSettings.weight_decay,
    dropout: Dropout = ClassifierSettings.dropout,
    seed: Seed = ClassifierSettings.seed,
    threads: Threads = None,
) -> None:
    """Train a classifier on SST-2, from a language model or from nothing.

    Example: [bold]qslm train classifier --init spikegpt-mini -o my-classifier[/bold]
    """
    check_ahead(output, "training")
    use_threads(threads)
    from qslm.training import train_classifier

    settings = ClassifierSettings(
        output=output,
        data=data,
        epochs=epochs,
        batch=batch,
        peak_rate=rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        dropout=dropout,
        seed=seed,
    )
    with Listener() as progress:
        model, words = _start(init, tokenizer, progress)
        named = (("--init", init), ("--tokenizer", tokenizer))
        given = [word for option, value in named if value is not None for word in (option, str(value))]
        print(train_classifier(settings, model, words, progress, given))


def _start(init: str | None, tokenizer: Path | None, progress: Listener) -> tuple[Any, Any]:
    """The network and the tokenizer to start from. Raises DataError when a network comes without one."""
    from qslm.data.tokenizer import load_tokenizer
    from qslm.errors import DataError

    if init is None:
        return None, load_tokenizer(tokenizer) if tokenizer is not None else None
    loaded = open_checkpoint(init, tokenizer=tokenizer, progress=progress)
    if loaded.tokenizer is None:
        raise DataError(f"{init} has no tokenizer.", "Give --tokenizer FILE.")
    return loaded.model, loaded.tokenizer
