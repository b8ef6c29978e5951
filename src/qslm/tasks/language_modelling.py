"""Language modelling: perplexity per token and bits per byte over fixed windows of a text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from qslm.data.tokenizer import EncodedText, check_vocabulary, describe_tokenizer, encode_text
from qslm.data.wikitext2 import word_tokens
from qslm.errors import DataError, TaskError
from qslm.tasks.perplexity import Perplexity, exp
from qslm.tasks.task import Losses, device_of

CONTEXT = 256  # tokens of a window where the model does not say
BATCH_WINDOWS = 16  # windows in a batch, at most
BATCH_TOKENS = 4096  # tokens in a batch, at most, unless one window alone has more
BATCH_LOGITS = 32_000_000  # logits in a batch, at most (128 MB in float32), unless one window alone has more
CHUNK_LOGITS = 4_000_000  # logits whose log-probabilities are computed at once (16 MB in float32)
ORDER_SEED = 0  # of the order in which windows are put into batches


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows of one length: `ids` and, one token later, `targets`; both int64 `(windows, tokens)`.

    units: int64 `(windows,)`, the place of each window in its split.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    units: torch.Tensor


class LanguageModelling(Perplexity):
    """Perplexity exp(-(1/N) sum_i log p(t_i | t_<i in its window)) over the N tokens that a split predicts.

    Window i has the inputs `ids[i*T : (i+1)*T]` and the targets one token later: windows do not overlap, each
    starts without memory of the one before, every token but the first is predicted once, and the last window
    may be shorter. Losses are nats, log-probabilities in float32 summed in float64.
    """

    exchangeable = True

    def __init__(
        self,
        name: str,
        texts: Mapping[str, str],
        tokenizer: Tokenizer,
        *,
        context: int = CONTEXT,
        windows: int | Mapping[str, int] | None = None,
        vocabulary_size: int | None = None,
        counts_words: bool = False,
        evaluation_split: str = "report",
        source: str = "",
    ) -> None:
        """Take the text of each split.

        context: tokens of a window. windows: measure only so many of the first ones, of every split or by the
        split's name. vocabulary_size: the model's, to be checked against the ids. counts_words: give the perplexity
        per word, as WikiText counts words.
        """
        limits = windows.values() if isinstance(windows, Mapping) else [] if windows is None else [windows]
        if context < 1 or any(limit < 1 for limit in limits):
            raise TaskError(
                f"A context of {context} tokens and a limit of {windows} windows make no window.",
                "Give positive numbers.",
            )
        self.name = name
        self.evaluation_split = evaluation_split
        self.source = source
        self._texts = dict(texts)
        self._tokenizer = tokenizer
        self._context = context
        self._windows = windows
        self._vocabulary_size = vocabulary_size
        self._counts_words = counts_words
        self._encoded: dict[str, EncodedText] = {}

    def batches(self, split: str) -> list[WindowBatch]:
        """Batches of several windows in a random order that is always the same; a shorter last window stands alone.

        The windows of any first batches are a random sample of the split, drawn without replacement.
        """
        ids = self._encode(split).ids
        predicted = len(ids) - 1
        limit = self._limit(split)
        if limit is not None:
            predicted = min(predicted, limit * self._context)
        windows = predicted // self._context
        order = torch.randperm(windows, generator=torch.Generator().manual_seed(ORDER_SEED))
        parts = [*order.split(self._batch_windows())] if windows else []
        if windows * self._context < predicted:
            parts.append(torch.tensor([windows]))
        return [self._window_batch(ids[: predicted + 1], units) for units in parts]

    def losses(self, model: nn.Module, batch: WindowBatch) -> Losses:
        """Nats of each window. `model(ids)` gives logits `(windows, tokens, vocabulary)`."""
        device = device_of(model)
        windows, tokens = batch.ids.shape
        with torch.inference_mode():
            logits = model(batch.ids.to(device))
            self._check_logits(logits, batch)
            nats = [_nats(*pair) for pair in zip(logits, batch.targets.to(device), strict=True)]
        return Losses(np.array(nats), np.full(windows, float(tokens)), windows * tokens, batch.units.numpy())

    def texts(self, split: str) -> Sequence[str] | None:
        """The whole text of the split, also where not all of its windows are measured."""
        return [self._texts[split]] if split in self._texts else None

    def details(self, losses: Losses, split: str) -> dict[str, float]:
        """`bits_per_byte` of the predicted text in UTF-8; `word_perplexity` over a whole split of WikiText-2.

        The perplexity per word is exp(nats / words), words as `qslm.data.wikitext2.word_tokens` counts them. Windows
        with gaps between them have no such figures: nothing counts the bytes of theirs.
        """
        if losses.units is not None and not np.array_equal(losses.units, np.arange(len(losses.units))):
            return {}
        encoded, nats, predicted = self._encode(split), float(losses.values.sum()), int(losses.weights.sum())
        size = encoded.bytes_until(predicted) - encoded.bytes_until(0)
        details = {"bits_per_byte": nats / math.log(2) / max(size, 1)}
        if self._counts_words and self._limit(split) is None and predicted == len(encoded.ids) - 1:
            details["word_perplexity"] = float(exp(np.array(nats / word_tokens(self._texts[split]))))
        return details

    def facts(self) -> dict[str, int | str]:
        """What the batches of a study follow from, in plain words: to say what differs where fingerprints do."""
        told: dict[str, int | str] = {"context": self._context, "source": self.source}
        told["tokenizer"] = describe_tokenizer(self._tokenizer)
        for split in self._texts.keys() & {"search", "report"}:
            told[f"{split} windows"] = self._limit(split) or "all"
            told[f"{split} characters"] = len(self._texts[split])
        return told

    def _window_batch(self, ids: torch.Tensor, units: torch.Tensor) -> WindowBatch:
        """The windows of these places, of one length; `ids` end with the last target."""
        starts = units * self._context
        tokens = min(self._context, len(ids) - 1 - int(starts[0]))
        places = starts[:, None] + torch.arange(tokens)
        return WindowBatch(ids[places], ids[places + 1], units)

    def _batch_windows(self) -> int:
        vocabulary = self._vocabulary_size or self._tokenizer.get_vocab_size()
        by_size = min(BATCH_TOKENS // self._context, BATCH_LOGITS // (self._context * vocabulary))
        return max(1, min(BATCH_WINDOWS, by_size))

    def _limit(self, split: str) -> int | None:
        """How many windows of a split are measured at most."""
        return self._windows.get(split) if isinstance(self._windows, Mapping) else self._windows

    def _encode(self, split: str) -> EncodedText:
        if split not in self._encoded:
            if split not in self._texts:
                known = ", ".join(self._texts)
                raise TaskError(f"The task {self.name} has no split {split!r}.", f"Its splits are: {known}.")
            limit = self._limit(split)
            wanted = None if limit is None else limit * self._context + 1
            encoded = encode_text(self._tokenizer, self._texts[split], wanted)
            self._check_ids(encoded.ids, split)
            self._encoded[split] = encoded
        return self._encoded[split]

    def _check_ids(self, ids: torch.Tensor, split: str) -> None:
        if len(ids) < 2:
            raise DataError(f"The split {split} of {self.name} has {len(ids)} tokens.", "Give a longer text.")
        check_vocabulary(int(ids.max()), self._vocabulary_size)

    def _check_logits(self, logits: torch.Tensor, batch: WindowBatch) -> None:
        largest = int(batch.targets.max())
        if logits.dim() != 3 or logits.shape[:2] != batch.ids.shape or logits.shape[2] <= largest:
            raise TaskError(
                f"For ids {tuple(batch.ids.shape)} up to {largest:,} the model gives {tuple(logits.shape)}, "
                "not logits (batch, tokens, vocabulary).",
                f"{self.name} needs a language model with the tokenizer's vocabulary.",
            )


def _nats(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Summed negative log-likelihood of one window: logits `(tokens, vocabulary)`, targets `(tokens,)`.

    The log-probabilities of some tokens are made at a time, so that there is no second tensor of the logits' size.
    """
    tokens = max(1, CHUNK_LOGITS // logits.shape[1])
    chunks = zip(logits.split(tokens), targets.split(tokens), strict=True)
    losses = [nn.functional.cross_entropy(one.float(), its, reduction="none") for one, its in chunks]
    return float(torch.cat(losses).double().sum())
