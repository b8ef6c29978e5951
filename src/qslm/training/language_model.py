"""`qslm train lm`: a SpikeGPT language model from a text, on a CPU."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from qslm import folders
from qslm.data.tokenizer import encode, train_tokenizer
from qslm.data.wikitext2 import TextCorpus, load_wikitext2
from qslm.errors import TrainingError
from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import SpikeGPT
from qslm.progress import SILENT, Progress
from qslm.training.card import firing_rates, write_checkpoint
from qslm.training.folder import held
from qslm.training.initialize import new_spikegpt, training_device
from qslm.training.loop import OptimizerSettings, device_of, generator_of, train
from qslm.training.loss import next_token_loss
from qslm.training.settings import LanguageModelSettings, chosen, command

VALIDATION_WINDOWS = 64
VALIDATION_BATCH = 8  # windows at once


def train_lm(settings: LanguageModelSettings, progress: Progress = SILENT) -> Path:
    """Train a language model on WikiText-2 train and return the folder of its checkpoint.

    The tokenizer is trained anew each time, which gives the same one. A killed training goes on where it was saved
    when it is started again. Raises TrainingError, also when the folder holds or makes something else, or DataError.
    """
    folders.check(settings.output, "training", TrainingError)
    corpus = load_wikitext2(settings.data, progress)
    with held(settings.output):
        return _train(settings, corpus, progress)


def _train(settings: LanguageModelSettings, corpus: TextCorpus, progress: Progress) -> Path:
    tokenizer = train_tokenizer(corpus.calibrate.splitlines(keepends=True), settings.vocabulary)
    ids = encode(tokenizer, corpus.calibrate)
    validation = encode(tokenizer, corpus.search)[: VALIDATION_WINDOWS * settings.context + 1]
    _check_length("training", ids, 2 * settings.context + 1)  # the cut between windows moves by up to one
    _check_length("validation", validation, settings.context + 1)
    windows = _windows(validation, settings.context)
    config = SpikeGPTConfig(
        tokenizer.get_vocab_size(), settings.width, settings.layers, 4 * settings.width, settings.context
    )
    model = new_spikegpt(config, settings.seed).to(training_device())
    model.dropout.rate = settings.dropout
    history = train(
        model,
        OptimizerSettings(settings.steps, settings.peak_rate, settings.warmup_steps, settings.weight_decay),
        lambda step: _training_loss(model, ids, settings, step),
        lambda: _validation_loss(model, *windows),
        validate_every=250,
        state_file=settings.output / folders.STATE,
        identity=chosen(settings) | {"text": corpus.source.name, "training_tokens": len(ids)},
        progress=progress,
    )
    record = {
        "command": command("qslm train lm", settings),
        "text": corpus.source.name,
        "settings": chosen(settings),
        "splits": {"training tokens": len(ids), "validation tokens": windows[1].numel()},
        "rates": firing_rates(model, windows[0][:VALIDATION_BATCH]),
    }
    return write_checkpoint(settings.output, model, tokenizer, history, record)


def windows_of_step(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The `batch` of `count` windows that step `step` sees; every epoch has its own order."""
    places = (divmod(position, count) for position in range(step * batch, (step + 1) * batch))
    return [int(_order_of_epoch(count, epoch, seed)[place]) for epoch, place in places]


@lru_cache(maxsize=2)  # a step sees the end of one epoch and the start of the next
def _order_of_epoch(count: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=generator_of(seed, epoch))


def _training_loss(model: SpikeGPT, ids: Tensor, settings: LanguageModelSettings, step: int) -> Tensor:
    device = device_of(model)
    generator = generator_of(settings.seed, step)
    model.train()
    model.dropout.generator = generator if device.type == "cpu" else generator_of(settings.seed, step, device)
    count = (len(ids) - 1) // settings.context - 1
    starts = torch.tensor(windows_of_step(count, settings.batch, step, settings.seed)) * settings.context
    # The cut between windows moves, so that every token is once the first and once the last of a window.
    starts += int(torch.randint(settings.context, (), generator=generator))
    windows = ids[starts[:, None] + torch.arange(settings.context + 1)].to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        x, _ = model.hidden(windows[:, :-1], None, None)
    return next_token_loss(x.flatten(0, 1), model.head.weight, windows[:, 1:].flatten())


def _check_length(text: str, ids: Tensor, needed: int) -> None:
    if len(ids) < needed:
        raise TrainingError(
            f"The {text} text has {len(ids)} tokens; {needed} are needed.", "Give more text or a shorter --context."
        )


def _windows(ids: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The whole windows of ids and, one token later, their targets; both (windows, context)."""
    end = (len(ids) - 1) // context * context
    return ids[:end].view(-1, context), ids[1 : end + 1].view(-1, context)


def _validation_loss(model: SpikeGPT, inputs: Tensor, targets: Tensor) -> float:
    """The mean nats per token over windows (windows, context), in evaluation mode and float32."""
    model.eval()
    device, total = device_of(model), 0.0
    with torch.inference_mode():
        for window, target in zip(inputs.split(VALIDATION_BATCH), targets.split(VALIDATION_BATCH), strict=True):
            logits = model(window.to(device)).flatten(0, 1)
            total += float(F.cross_entropy(logits, target.to(device).flatten(), reduction="sum"))
    return total / targets.numel()
