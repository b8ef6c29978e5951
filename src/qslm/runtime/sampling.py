"""Text from a language model, token by token, with the recurrent form of the network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from qslm.data.tokenizer import END_OF_TEXT, check_vocabulary, encode, load_tokenizer
from qslm.errors import TaskError
from qslm.models.causal import CausalLogits
from qslm.models.encoder import EncoderLogits
from qslm.models.spikegpt import SpikeGPT
from qslm.runtime.engine import Engine


def generate(
    model: SpikeGPT | CausalLogits | EncoderLogits | Engine,
    tokenizer: Tokenizer | Path | str,
    prompt: str,
    *,
    tokens: int = 64,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> str:
    """`prompt` and up to `tokens` tokens after it; the same seed gives the same text.

    `tokenizer` may be the path of a `tokenizer.json`. `temperature` 0 takes the likeliest token. The native engine
    draws by a generator of its own. Raises TaskError on unusable settings or a classifier, DataError on an unusable
    tokenizer.
    """
    if isinstance(tokenizer, Path | str):
        tokenizer = load_tokenizer(tokenizer)
    return prompt + tokenizer.decode(list(stream(model, tokenizer, prompt, tokens, temperature, top_p, seed)))


def stream(
    model: SpikeGPT | CausalLogits | EncoderLogits | Engine,
    tokenizer: Tokenizer,
    prompt: str,
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[int]:
    """The ids that follow `prompt`, until the end-of-text token or `tokens` of them."""
    classes, vocabulary_size = _facts(model)
    _check(classes, tokens, temperature, top_p)
    end = tokenizer.token_to_id(END_OF_TEXT)
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise TaskError(
            f"The prompt is not UTF-8: what stands behind {error.start:,} characters begins none.", "Give UTF-8."
        ) from error
    ids = encode(tokenizer, prompt)
    if len(ids) == 0:
        ids = torch.tensor([end if end is not None else 0])
    check_vocabulary(int(ids.max()), vocabulary_size)
    if isinstance(model, Engine):
        yield from model.stream(ids.tolist(), tokens, temperature, top_p, seed, end)
        return
    generator = torch.Generator().manual_seed(seed % 2**63)
    logits, state = _advance(model, ids, None)
    for _ in range(tokens):
        token = sample(logits.cpu(), temperature, top_p, generator)
        if token == end:
            return
        yield token
        logits, state = _advance(model, torch.tensor([token]), state)


def _facts(model: SpikeGPT | CausalLogits | EncoderLogits | Engine) -> tuple[int | None, int]:
    """How many classes a model has, None for a language model, and how many tokens it knows."""
    about = model if isinstance(model, Engine) else model.config
    return about.classes, about.vocabulary_size


@torch.inference_mode()  # here and not around the loop: at a yield it would reach into the caller's code
def _advance(model: SpikeGPT | CausalLogits | EncoderLogits, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The logits (vocabulary,) of the last of ids (tokens,) alone, and the state after it; None before the first."""
    if isinstance(model, CausalLogits):
        return model.advance(ids, state)
    assert isinstance(model, SpikeGPT)  # as _check has seen to
    x, state = model.hidden(ids[None].to(model.ln_out.weight.device), state or model.initial_state(1), None)
    return model.head(x[:, -1:])[0, 0], state


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token from logits (vocabulary,) restricted to the likeliest that make up `top_p` of the probability."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax((logits - logits.max()).double() / temperature, 0).sort(
        descending=True, stable=True
    )
    before = probabilities.cumsum(0) - probabilities
    probabilities[before >= top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _check(classes: int | None, tokens: int, temperature: float, top_p: float) -> None:
    if classes is not None:
        raise TaskError("A classifier does not generate text.", "Load a language model.")
    if tokens < 0 or not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
        raise TaskError(
            f"Cannot generate {tokens} tokens at temperature {temperature} and top-p {top_p}.",
            "Use tokens >= 0, temperature >= 0 and 0 < top-p <= 1.",
        )
