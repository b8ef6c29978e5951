"""`qslm train lm`: a SpikeGPT language model from a text, on a CPU."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from qslm.data.tokenizer import encode, load_tokenizer, train_tokenizer
from qslm.data.wikitext2 import TextCorpus, load_wikitext2
from qslm.errors import TrainingError
from qslm.models.spikegpt import SpikeGPT, SpikeGPTConfig
from qslm.progress import SILENT, Progress
from qslm.training.card import firing_rates, write_checkpoint
from qslm.training.initialize import new_spikegpt
from qslm.training.loop import OptimizerSettings, generator_of, train
from qslm.training.loss import next_token_loss

VALIDATION_WINDOWS = 64
VALIDATION_BATCH = 8  # windows at once


@dataclass(frozen=True)
class LanguageModelSettings:
    """What `qslm train lm` can be told; the defaults made `spikegpt-mini`."""

    output: Path
    data: Path | None = None
    width: int = 256
    layers: int = 6
    vocabulary: int = 4096
    context: int = 256
    batch: int = 16
    tokens: int = 24_000_000
    peak_rate: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.tokens // (self.batch * self.context))


def train_lm(settings: LanguageModelSettings, progress: Progress = SILENT) -> Path:
    """Train a language model on WikiText-2 train and return the folder of its checkpoint.

    A killed training goes on where it was saved when it is started again. Raises TrainingError or DataError.
    """
    corpus = load_wikitext2(settings.data, progress)
    tokenizer = _tokenizer(corpus, settings)
    ids = encode(tokenizer, corpus.calibrate)
    validation = encode(tokenizer, corpus.search)[: VALIDATION_WINDOWS * settings.context + 1]
    _check_length("training", ids, 2 * settings.context + 1)  # the cut between windows moves by up to one
    _check_length("validation", validation, settings.context + 1)
    config = SpikeGPTConfig(
        tokenizer.get_vocab_size(), settings.width, settings.layers, 4 * settings.width, settings.context
    )
    model = new_spikegpt(config, settings.seed)
    model.dropout.rate = settings.dropout
    identity = {key: value for key, value in asdict(settings).items() if key not in ("output", "data")}
    history = train(
        model,
        OptimizerSettings(settings.steps, settings.peak_rate, settings.warmup_steps, settings.weight_decay),
        lambda step: _training_loss(model, ids, settings, step),
        lambda: _validation_loss(model, *_windows(validation, settings.context)),
        validate_every=250,
        state_file=settings.output / "training.pt",
        identity=identity | {"text": corpus.source.name, "training_tokens": len(ids)},
        progress=progress,
    )
    sample = _windows(validation, settings.context)[0][:VALIDATION_BATCH]
    record: dict[str, Any] = {"command": "qslm train lm", "text": corpus.source.name, "settings": identity}
    record["rates"] = firing_rates(model, sample)
    return write_checkpoint(settings.output, model, tokenizer, history, record)


def windows_of_step(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Return which `batch` of `count` windows step `step` sees; every epoch has its own order."""
    chosen = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        generator = generator_of(seed, epoch)
        chosen.append(int(torch.randperm(count, generator=generator)[place]))
    return chosen


def _tokenizer(corpus: TextCorpus, settings: LanguageModelSettings) -> Tokenizer:
    path = settings.output / "tokenizer.json"
    if path.exists():
        return load_tokenizer(path)
    tokenizer = train_tokenizer(corpus.calibrate.splitlines(keepends=True), settings.vocabulary)
    settings.output.mkdir(parents=True, exist_ok=True)
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return tokenizer


def _training_loss(model: SpikeGPT, ids: Tensor, settings: LanguageModelSettings, step: int) -> Tensor:
    generator = generator_of(settings.seed, step)
    model.train()
    model.dropout.generator = generator
    count = (len(ids) - 1) // settings.context - 1
    starts = torch.tensor(windows_of_step(count, settings.batch, step, settings.seed)) * settings.context
    # The cut between windows moves, so that every token is once the first and once the last of a window.
    starts += int(torch.randint(settings.context, (), generator=generator))
    windows = ids[starts[:, None] + torch.arange(settings.context + 1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, _ = model.hidden(windows[:, :-1], None, None)
    return next_token_loss(x.flatten(0, 1), model.head.weight, windows[:, 1:].flatten())


def _check_length(text: str, ids: Tensor, needed: int) -> None:
    if len(ids) < needed:
        raise TrainingError(
            f"The {text} text has {len(ids)} tokens; {needed} are needed.", "Give more text or a shorter --context."
        )


def _windows(ids: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Whole windows of ids and, one token later, their targets; both (windows, context)."""
    end = (len(ids) - 1) // context * context
    return ids[:end].view(-1, context), ids[1 : end + 1].view(-1, context)


def _validation_loss(model: SpikeGPT, inputs: Tensor, targets: Tensor) -> float:
    """Mean nats per token over windows (windows, context), evaluation mode, float32."""
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for window, target in zip(inputs.split(VALIDATION_BATCH), targets.split(VALIDATION_BATCH), strict=True):
            logits = model(window)
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
    return total / targets.numel()
