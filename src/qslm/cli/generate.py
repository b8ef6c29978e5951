"""`qslm generate`: go on with a prompt."""

from typing import Annotated

import typer

from qslm.cli.opening import open_checkpoint
from qslm.cli.options import BinaryEmbedding, Checkpoint, Json, Threads, Tokenizer, use_threads
from qslm.cli.output import print_json
from qslm.cli.progress import Listener


def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option("--prompt", help="The text to go on with.", show_default=False)],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Draw from the likeliest tokens of this share.")
    ] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same text.")] = 0,
    tokenizer: Tokenizer = None,
    binary_embedding: BinaryEmbedding = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Go on with a prompt, by a checkpoint or by a packed model.

    Example: [bold]qslm generate runs/demo/artifact --prompt "The river" --tokens 40 --temperature 0.8[/bold]
    """
    use_threads(threads)
    from qslm.errors import DataError
    from qslm.runtime.sampling import generate as generate_text

    with Listener() as progress:
        loaded = open_checkpoint(checkpoint, tokenizer=tokenizer, binary_embedding=binary_embedding, progress=progress)
    if loaded.tokenizer is None:
        raise DataError(f"{checkpoint} has no tokenizer.", "Give --tokenizer FILE.")
    text = generate_text(
        loaded.model, loaded.tokenizer, prompt, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    if as_json:
        print_json({"checkpoint": checkpoint, "prompt": prompt, "text": text, "seed": seed})
    else:
        print(text)
