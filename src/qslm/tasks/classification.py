"""Classification: accuracy over labelled sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from qslm.data.files import LabelledText
from qslm.data.tokenizer import END_OF_TEXT, Frame, check_vocabulary, describe_tokenizer, encode_all, padding_id
from qslm.errors import DataError, TaskError
from qslm.progress import SILENT, Progress
from qslm.tasks.task import Losses, Task, device_of

LENGTH_STEP = 8  # sentences are padded to multiples of this many tokens
BATCH_SENTENCES = 64  # sentences in a batch, at most
BATCH_TOKENS = 4096  # tokens in a batch, padding included, at most
NO_FRAME = Frame()


@dataclass(frozen=True, eq=False)
class SentenceBatch:
    """Sentences of about one length, padded on the right.

    ids: int64 `(sentences, tokens)`. mask: bool `(sentences, tokens)`, True for a real token. labels: int64
    `(sentences,)`. units: int64 `(sentences,)`, the place of each sentence in its split.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    units: torch.Tensor


class Classification(Task):
    """Accuracy: the share of sentences whose largest logit is that of their label.

    Sentences are batched by length, so that little padding is computed; the losses come back in the split's
    order. A sentence longer than `context` tokens loses its end, what a frame puts around it not; an empty one without
    a frame is the single token `<|endoftext|>`.
    """

    metric = "accuracy"
    unit = "sentence"

    def __init__(
        self,
        name: str,
        splits: Mapping[str, LabelledText],
        tokenizer: Tokenizer,
        *,
        classes: int,
        context: int,
        frame: Frame = NO_FRAME,
        sentences: int | Mapping[str, int] | None = None,
        vocabulary_size: int | None = None,
        evaluation_split: str = "report",
        source: str = "",
        progress: Progress = SILENT,
    ) -> None:
        """Take the labelled sentences of each split.

        context: tokens of a sentence, with those of the frame that the network reads around it. sentences: measure
        only so many, evenly spread over the split, of every split or by the split's name. Raises TaskError when one of
        them is not positive, or the frame leaves no room.
        """
        if context <= len(frame):
            raise TaskError(
                f"A context of {context} tokens holds no sentence.", f"Give a number from {len(frame) + 1} on."
            )
        limits = (
            sentences
            if isinstance(sentences, Mapping)
            else {}
            if sentences is None
            else dict.fromkeys(splits, sentences)
        )
        if any(limit < 1 for limit in limits.values()):
            raise TaskError(f"A limit of {sentences} sentences leaves none.", "Give a positive number.")
        self.name = name
        self.evaluation_split = evaluation_split
        self.source = source
        self._splits = {split: _spread(labelled, limits.get(split)) for split, labelled in splits.items()}
        self._tokenizer = tokenizer
        self._classes = classes
        self._context = context
        self._frame = frame
        self._vocabulary_size = vocabulary_size
        self._progress = progress
        self._batches: dict[str, list[SentenceBatch]] = {}

    def batches(self, split: str) -> list[SentenceBatch]:
        """Batches by padded length, shortest first."""
        if split not in self._batches:
            labelled = self._labelled(split)
            encoded = self._encode(labelled, split)
            self._batches[split] = [self._batch(encoded, labelled, units) for units in _buckets(encoded)]
        return self._batches[split]

    def losses(self, model: nn.Module, batch: SentenceBatch) -> Losses:
        """1.0 for each sentence that is right. `model(ids, mask)` gives logits `(sentences, classes)`."""
        device = device_of(model)
        with torch.inference_mode():
            logits = model(batch.ids.to(device), batch.mask.to(device))
            self._check_logits(logits, batch)
            # A comparison with NaN tells nothing: a sentence with such a logit is wrong.
            right = (logits.argmax(-1).cpu() == batch.labels) & logits.isfinite().all(-1).cpu()
        values = right.double().numpy()
        return Losses(values, np.ones(len(values)), batch.ids.numel(), batch.units.numpy())

    def texts(self, split: str) -> Sequence[str] | None:
        """The sentences of the split."""
        return self._splits[split].sentences if split in self._splits else None

    def facts(self) -> dict[str, int | str]:
        """What the batches of a study follow from, in plain words: to say what differs where fingerprints do."""
        told: dict[str, int | str] = {"context": self._context, "source": self.source}
        told["tokenizer"] = describe_tokenizer(self._tokenizer)
        sizes = {f"{split} sentences": len(self._splits[split]) for split in self._splits.keys() & {"search", "report"}}
        return told | sizes

    def _labelled(self, split: str) -> LabelledText:
        if split not in self._splits:
            raise TaskError(
                f"The task {self.name} has no split {split!r}.", f"Its splits are: {', '.join(self._splits)}."
            )
        if not len(self._splits[split]):
            raise DataError(f"The split {split} of {self.name} has no sentences.", "Give more sentences.")
        return self._splits[split]

    def _encode(self, labelled: LabelledText, split: str) -> list[list[int]]:
        found = encode_all(self._tokenizer, labelled.sentences)
        encoded = [self._frame.around(ids, self._context) or [self._empty_id()] for ids in found]
        check_vocabulary(max(padding_id(self._tokenizer), *map(max, encoded)), self._vocabulary_size)
        long = sum(len(ids) + len(self._frame) > self._context for ids in found)
        if long:
            self._progress.message(
                f"{self.name}, {split}: {long:,} of {len(encoded):,} sentences are longer than {self._context} tokens "
                "and lose their end."
            )
        return encoded

    def _batch(self, encoded: list[list[int]], labelled: LabelledText, units: list[int]) -> SentenceBatch:
        shape = len(units), min(_padded(max(len(encoded[unit]) for unit in units)), self._context)
        ids = torch.full(shape, padding_id(self._tokenizer), dtype=torch.int64)
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, unit in enumerate(units):
            ids[row, : len(encoded[unit])] = torch.tensor(encoded[unit])
            mask[row, : len(encoded[unit])] = True
        return SentenceBatch(ids, mask, torch.tensor([labelled.labels[unit] for unit in units]), torch.tensor(units))

    def _empty_id(self) -> int:
        found = self._tokenizer.token_to_id(END_OF_TEXT)
        return padding_id(self._tokenizer) if found is None else int(found)

    def _check_logits(self, logits: torch.Tensor, batch: SentenceBatch) -> None:
        if logits.dim() == 3:
            raise TaskError(
                f"{self.name} needs a classifier, but the model is a language model.",
                "Fine-tune it first: qslm train classifier --init CHECKPOINT.",
            )
        if logits.shape != (len(batch.ids), self._classes):
            raise TaskError(
                f"{self.name} has {self._classes} classes, but for {len(batch.ids)} sentences the model gives "
                f"{tuple(logits.shape)}.",
                "Give a classifier of these classes.",
            )


def _spread(labelled: LabelledText, limit: int | None) -> LabelledText:
    """`limit` sentences at even steps, so that a table in the order of its labels keeps all of them."""
    total = len(labelled)
    return labelled if limit is None or limit >= total else labelled.select([i * total // limit for i in range(limit)])


def _buckets(encoded: list[list[int]]) -> list[list[int]]:
    """Places of sentences, batch by batch: one padded length each, shortest first, as many as a batch may hold."""
    by_length: dict[int, list[int]] = {}
    for unit, ids in enumerate(encoded):
        by_length.setdefault(_padded(len(ids)), []).append(unit)
    batches = []
    for length, units in sorted(by_length.items()):
        size = max(1, min(BATCH_SENTENCES, BATCH_TOKENS // length))
        batches += [units[start : start + size] for start in range(0, len(units), size)]
    return batches


def _padded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
