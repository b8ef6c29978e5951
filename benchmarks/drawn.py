"""Windows for a network with random weights: ids drawn evenly, targets drawn from what the network predicts.

No text would do: a random network predicts none, so rounding could make it no worse. Of these windows its loss is its
own entropy, and rounding adds the KL divergence, as in a network that predicts its text well.
"""

from collections.abc import Mapping

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from qslm.models.neurons import SpikeTrace
from qslm.models.spikegpt import SpikeGPT
from qslm.tasks.language_modelling import LanguageModelling, WindowBatch
from qslm.tasks.task import Losses

SEED = 0
CHUNK = 64  # tokens whose labels are drawn at once

Windows = dict[str, dict[str, torch.Tensor]]


class DrawnWindows(LanguageModelling):
    """A task of given windows: `ids` and `targets` (windows, context) of every split; there is no text."""

    def __init__(self, windows: Windows, vocabulary_size: int, batch: int = 1) -> None:
        nobody = Tokenizer(WordLevel({"<unk>": 0}, "<unk>"))
        context = next(iter(windows.values()))["ids"].shape[1]
        super().__init__("drawn", {}, nobody, context=context, vocabulary_size=vocabulary_size)
        self._drawn, self._size = windows, batch

    def batches(self, split: str) -> list[WindowBatch]:
        """The windows as they were drawn, so many to a batch."""
        given = self._drawn[split]
        places = torch.arange(len(given["ids"]))
        parts = zip(*(one.split(self._size) for one in (given["ids"], given["targets"], places)), strict=True)
        return [WindowBatch(*part) for part in parts]

    def details(self, losses: Losses, split: str) -> dict[str, float]:
        """Nothing: there are no bytes to count."""
        return {}


@torch.inference_mode()
def draw(model: SpikeGPT, windows: Mapping[str, int], context: int) -> tuple[Windows, list[float]]:
    """So many windows of each split, and how often the neurons of each layer fire on the first one.

    The targets of "calibrate" are not drawn: what is expected of a rounding draws labels of its own.
    """
    generator = torch.Generator().manual_seed(SEED)
    drawn: Windows = {}
    rates: list[float] = []
    for split, count in windows.items():
        ids = torch.randint(model.config.vocabulary_size, (count, context), generator=generator)
        targets = torch.zeros_like(ids)
        for row in range(count if split != "calibrate" else 0):
            trace = None if rates else SpikeTrace()
            logits = model(ids[row : row + 1], trace=trace)[0].split(CHUNK)
            labels = [torch.multinomial(some.softmax(-1), 1, generator=generator)[:, 0] for some in logits]
            targets[row] = torch.cat(labels)
            rates = rates if trace is None else [float(spikes.mean()) for spikes in trace.spikes]
        drawn[split] = {"ids": ids, "targets": targets}
    return drawn, rates
