"""`qslm train classifier`: a sentence classifier, fine-tuned from a language model or from nothing."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from qslm.data.files import LabelledText
from qslm.data.sst2 import load_sst2
from qslm.data.tokenizer import encode, padding_id, train_tokenizer
from qslm.errors import TrainingError
from qslm.models.spikegpt import SpikeGPT, SpikeGPTConfig
from qslm.progress import SILENT, Progress
from qslm.training.card import firing_rates, write_checkpoint
from qslm.training.initialize import new_spikegpt
from qslm.training.loop import OptimizerSettings, generator_of, train

NEW_VOCABULARY = 4096
POOL = 32  # batches whose sentences are sorted by length together


@dataclass(frozen=True)
class ClassifierSettings:
    """What `qslm train classifier` can be told; the defaults made `spikegpt-mini-sst2`."""

    output: Path
    data: Path | None = None
    epochs: int = 4
    batch: int = 64
    peak_rate: float = 5e-4
    warmup_steps: int = 200
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Sentences:
    """Encoded sentences and their labels."""

    ids: list[Tensor]
    labels: Tensor  # (sentences,)
    padding: int

    @classmethod
    def encoded(cls, text: LabelledText, tokenizer: Tokenizer, context: int) -> "Sentences":
        """Encode each sentence, cut after `context` tokens."""
        ids = [encode(tokenizer, sentence)[:context] for sentence in text.sentences]
        return cls(ids, torch.tensor(text.labels), padding_id(tokenizer))

    def padded(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """Return ids (batch, tokens) and the mask (batch, tokens) of real tokens; an empty sentence is one padding."""
        ids = torch.nn.utils.rnn.pad_sequence([self.ids[i] for i in chosen], batch_first=True, padding_value=-1)
        if ids.shape[1] == 0:
            ids = ids.new_full((len(chosen), 1), -1)
        mask = ids >= 0
        return ids.masked_fill(~mask, self.padding), mask


def train_classifier(
    settings: ClassifierSettings,
    start: SpikeGPT | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Fine-tune `start` (or a new network of the mini's size) on SST-2 train; return the folder of the checkpoint.

    Without a `tokenizer` one is trained on the training sentences; `start` needs the one it was trained with. The
    head of a language model gives way to a mean-pooled classifier. Validation is the search split; dev stays unseen.
    A killed training goes on where it was saved. Raises TrainingError or DataError.
    """
    corpus = load_sst2(settings.data, progress)
    tokenizer = tokenizer or train_tokenizer(corpus.calibrate.sentences, NEW_VOCABULARY)
    model = classifier_from(start, tokenizer, corpus.classes, settings.seed)
    model.dropout.rate = settings.dropout
    start_digest = digest_of(model)
    training, search = (
        Sentences.encoded(text, tokenizer, model.config.context_length) for text in (corpus.calibrate, corpus.search)
    )
    steps_per_epoch = -(-len(training.ids) // settings.batch)
    identity = {key: value for key, value in asdict(settings).items() if key not in ("output", "data")}
    history = train(
        model,
        OptimizerSettings(
            settings.epochs * steps_per_epoch, settings.peak_rate, settings.warmup_steps, settings.weight_decay
        ),
        _Loss(model, training, settings),
        lambda: accuracy(model, search, settings.batch),
        validate_every=steps_per_epoch,
        state_file=settings.output / "training.pt",
        identity=identity | {"text": corpus.source.name, "sentences": len(training.ids), "start": start_digest},
        progress=progress,
    )
    ids, mask = search.padded(list(range(min(64, len(search.ids)))))
    record: dict[str, Any] = {"command": "qslm train classifier", "text": corpus.source.name, "settings": identity}
    record["rates"] = firing_rates(model, ids, mask)
    return write_checkpoint(settings.output, model, tokenizer, history, record)


def classifier_from(start: SpikeGPT | None, tokenizer: Tokenizer, classes: int, seed: int) -> SpikeGPT:
    """Return a trainable classifier with the body of `start`, or a freshly initialized one of the mini's size."""
    vocabulary = tokenizer.get_vocab_size()
    if start is None:
        return new_spikegpt(SpikeGPTConfig(vocabulary, 256, 6, 1024, 256, classes), seed)
    if vocabulary > start.config.vocabulary_size:
        raise TrainingError(
            f"The tokenizer has {vocabulary} words, the network {start.config.vocabulary_size}.",
            "Give the tokenizer that the network was trained with.",
        )
    config = SpikeGPTConfig.from_dict({**start.config.to_dict(), "classes": classes})
    model = new_spikegpt(config, seed)
    body = {name: tensor for name, tensor in start.state_dict().items() if name in model.state_dict()}
    if start.config.classes != classes:
        body.pop("classifier.weight", None)
    model.load_state_dict(body, strict=False)
    return model


def digest_of(model: SpikeGPT) -> str:
    """Return the sha256 of the parameters, so that a training goes on only from the network it began with."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def batches_of_epoch(lengths: list[int], batch: int, epoch: int, seed: int) -> list[list[int]]:
    """Return the sentences of each step of an epoch: shuffled, then sorted by length within pools of batches."""
    generator = generator_of(seed, epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), batch * POOL):
        pool = sorted(order[start : start + batch * POOL], key=lambda i: lengths[i])
        batches += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def accuracy(model: SpikeGPT, sentences: Sentences, batch: int) -> float:
    """Share of sentences whose class the model finds, evaluation mode."""
    model.eval()
    order = sorted(range(len(sentences.ids)), key=lambda i: len(sentences.ids[i]))
    right = 0
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            right += int((model(*sentences.padded(chosen)).argmax(1) == sentences.labels[chosen]).sum())
    return right / len(order)


class _Loss:
    """Training loss of a step; remembers the order of the epoch that it is in."""

    def __init__(self, model: SpikeGPT, sentences: Sentences, settings: ClassifierSettings) -> None:
        self.model, self.sentences, self.settings = model, sentences, settings
        self.steps_per_epoch = -(-len(sentences.ids) // settings.batch)
        self.epoch, self.batches = -1, [[0]]

    def __call__(self, step: int) -> Tensor:
        """Return the mean cross entropy of the step's batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            lengths = [len(ids) for ids in self.sentences.ids]
            self.epoch = epoch
            self.batches = batches_of_epoch(lengths, self.settings.batch, epoch, self.settings.seed)
        self.model.train()
        self.model.dropout.generator = generator_of(self.settings.seed, step)
        chosen = self.batches[place]
        ids, mask = self.sentences.padded(chosen)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(ids, mask)
        return F.cross_entropy(logits.float(), self.sentences.labels[chosen])
