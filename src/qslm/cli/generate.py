"""`qslm generate`: go on with a prompt."""

from typing import Annotated, Any

import typer

from qslm import packed
from qslm.cli.engine import EngineChoice
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
    engine: EngineChoice = "auto",
    tokenizer: Tokenizer = None,
    binary_embedding: BinaryEmbedding = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Go on with a prompt, by a checkpoint or by a packed model.

    Example: [bold]qslm generate runs/demo/artifact --prompt "The river" --tokens 40 --temperature 0.8[/bold]
    """
    use_threads(threads)
    from qslm.cli.engine import open_engine
    from qslm.data.tokenizer import load_tokenizer
    from qslm.errors import DataError
    from qslm.folders import TOKENIZER
    from qslm.runtime.sampling import generate as generate_text

    native = open_engine(checkpoint, engine, threads)
    model: Any = native
    if native is not None:
        beside = packed.folder_of(checkpoint) / TOKENIZER
        found = tokenizer or (beside if beside.exists() else None)
        words = None if found is None else load_tokenizer(found)
    else:
        with Listener() as progress:
            loaded = open_checkpoint(
                checkpoint, tokenizer=tokenizer, binary_embedding=binary_embedding, progress=progress
            )
        model, words = loaded.model, loaded.tokenizer
    if words is None:
        raise DataError(f"{checkpoint} has no tokenizer.", "Give --tokenizer FILE.")
    text = generate_text(model, words, prompt, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed)
    if as_json:
        ran = "torch" if native is None else "native"
        print_json({"checkpoint": checkpoint, "prompt": prompt, "text": text, "seed": seed, "engine": ran})
    else:
        print(text)
