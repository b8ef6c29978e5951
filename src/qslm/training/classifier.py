"""`qslm train classifier`: a sentence classifier, fine-tuned from a language model or from nothing."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from qslm import folders
from qslm.data.files import LabelledText
from qslm.data.sst2 import LabelledCorpus, load_sst2
from qslm.data.tokenizer import encode, padding_id, train_tokenizer
from qslm.digest import update_digest
from qslm.errors import TrainingError
from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import SpikeGPT
from qslm.progress import SILENT, Progress
from qslm.training.card import firing_rates, write_checkpoint
from qslm.training.folder import held
from qslm.training.initialize import new_spikegpt, training_device
from qslm.training.loop import OptimizerSettings, device_of, generator_of, train
from qslm.training.settings import ClassifierSettings, chosen, command

NEW_VOCABULARY = 4096
POOL = 32  # batches whose sentences are sorted by length together


@dataclass(frozen=True, eq=False)
class Sentences:
    """Encoded sentences and their labels."""

    ids: list[Tensor]
    labels: Tensor  # (sentences,)
    padding: int

    @classmethod
    def encoded(cls, text: LabelledText, tokenizer: Tokenizer, context: int) -> "Sentences":
        """The sentences of `text`, each cut after `context` tokens."""
        ids = [encode(tokenizer, sentence)[:context] for sentence in text.sentences]
        return cls(ids, torch.tensor(text.labels), padding_id(tokenizer))

    def padded(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """The ids (batch, tokens) and the mask (batch, tokens) of real tokens; an empty sentence is one padding."""
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
    given: Sequence[str] = (),
) -> Path:
    """Fine-tune `start` (or a new network of the mini's size) on SST-2 train; return the folder of the checkpoint.

    Without a `tokenizer` one is trained on the training sentences; `start` needs the one it was trained with. `given`
    are the words of the command line that named them, such as `("--init", "spikegpt-mini")`, for the record. The
    head of a language model gives way to a mean-pooled classifier. Validation is the search split; dev stays unseen.
    A killed training goes on where it was saved. Raises TrainingError, also when the folder holds or makes something
    else, or DataError.
    """
    folders.check(settings.output, "training", TrainingError)
    corpus = load_sst2(settings.data, progress)
    with held(settings.output):
        tokenizer = tokenizer or train_tokenizer(corpus.calibrate.sentences, NEW_VOCABULARY)
        model = classifier_from(start, tokenizer, corpus.classes, settings.seed).to(training_device())
        return _train(settings, model, tokenizer, corpus, given, progress)


def _train(
    settings: ClassifierSettings,
    model: SpikeGPT,
    tokenizer: Tokenizer,
    corpus: LabelledCorpus,
    given: Sequence[str],
    progress: Progress,
) -> Path:
    model.dropout.rate = settings.dropout
    training, search = (
        Sentences.encoded(text, tokenizer, model.config.context_length) for text in (corpus.calibrate, corpus.search)
    )
    steps_per_epoch = -(-len(training.ids) // settings.batch)
    text, start = corpus.source.name, digest_of(model)
    history = train(
        model,
        OptimizerSettings(
            settings.epochs * steps_per_epoch, settings.peak_rate, settings.warmup_steps, settings.weight_decay
        ),
        _Loss(model, training, settings),
        lambda: accuracy(model, search, settings.batch),
        validate_every=steps_per_epoch,
        state_file=settings.output / folders.STATE,
        identity=chosen(settings) | {"text": text, "sentences": len(training.ids), "start": start},
        progress=progress,
    )
    record = {
        "command": command("qslm train classifier", settings, given),
        "text": text,
        "settings": chosen(settings),
        "splits": dict(corpus.counts),
        "rates": firing_rates(model, *search.padded(list(range(min(64, len(search.ids)))))),
    }
    return write_checkpoint(settings.output, model, tokenizer, history, record)


def classifier_from(start: SpikeGPT | None, tokenizer: Tokenizer, classes: int, seed: int) -> SpikeGPT:
    """A trainable classifier with the body of `start`, or a freshly initialized one of the mini's size.

    Raises TrainingError when the tokenizer has more words than `start`.
    """
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
    """The sha256 of names and parameters, so that a training goes on only from the network it began with.

    It stands in the saved states of trainings: another digest of the same network would orphan them.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        update_digest(digest, [tensor])
    return digest.hexdigest()


def batches_of_epoch(lengths: list[int], batch: int, epoch: int, seed: int) -> list[list[int]]:
    """The sentences of each step of an epoch: shuffled, then sorted by length within pools of batches."""
    generator = generator_of(seed, epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), batch * POOL):
        pool = sorted(order[start : start + batch * POOL], key=lambda i: lengths[i])
        batches += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def accuracy(model: SpikeGPT, sentences: Sentences, batch: int) -> float:
    """The share of sentences whose class the model finds, in evaluation mode."""
    model.eval()
    device = device_of(model)
    order = sorted(range(len(sentences.ids)), key=lambda i: len(sentences.ids[i]))
    right = 0
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            ids, mask = (tensor.to(device) for tensor in sentences.padded(chosen))
            right += int((model(ids, mask).argmax(1).cpu() == sentences.labels[chosen]).sum())
    return right / len(order)


class _Loss:
    """The training loss of a step; remembers the order of the epoch that it is in."""

    def __init__(self, model: SpikeGPT, sentences: Sentences, settings: ClassifierSettings) -> None:
        self.model, self.sentences, self.settings = model, sentences, settings
        self.steps_per_epoch = -(-len(sentences.ids) // settings.batch)
        self.epoch, self.batches = -1, [[0]]

    def __call__(self, step: int) -> Tensor:
        """The mean cross entropy of the step's batch, in nats per sentence."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            lengths = [len(ids) for ids in self.sentences.ids]
            self.epoch = epoch
            self.batches = batches_of_epoch(lengths, self.settings.batch, epoch, self.settings.seed)
        self.model.train()
        device = device_of(self.model)
        self.model.dropout.generator = generator_of(self.settings.seed, step, device)
        places = self.batches[place]
        ids, mask = (tensor.to(device) for tensor in self.sentences.padded(places))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = self.model(ids, mask)
        return F.cross_entropy(logits.float(), self.sentences.labels[places].to(device))
