"""Tasks for the small networks: what the float network itself answers is right, but for a few units."""

import numpy as np
import torch
from torch import nn

from qslm.tasks.task import Losses, Task


class Agreement(Task):
    """Accuracy against the classes that a float network gave; every tenth label is another one."""

    name, metric, unit = "agreement", "accuracy", "sentence"

    def __init__(self, model, sentences=120, tokens=6, vocabulary=40, batch=60):
        self.splits = {}
        for number, split in enumerate(("search", "report")):
            generator = torch.Generator().manual_seed(number)
            ids = torch.randint(vocabulary, (sentences, tokens), generator=generator)
            with torch.no_grad():
                labels = model(ids).argmax(-1)
            labels[::10] = (labels[::10] + 1) % 2
            self.splits[split] = list(zip(ids.split(batch), labels.split(batch), strict=True))

    def batches(self, split):
        return self.splits[split]

    def losses(self, model, batch):
        ids, labels = batch
        right = (model(ids).argmax(-1) == labels).double().numpy()
        return Losses(right, np.ones(len(right)), ids.numel())


class NextToken(Task):
    """Perplexity of a language model on tokens that the float network itself drew."""

    name, metric, unit, higher_is_better = "next-token", "perplexity", "window", False

    def __init__(self, model, windows=40, tokens=12, vocabulary=32, batch=20):
        self.splits = {}
        for number, split in enumerate(("search", "report")):
            generator = torch.Generator().manual_seed(number)
            ids = torch.randint(vocabulary, (windows, 1), generator=generator)
            with torch.no_grad():
                for _ in range(tokens):
                    chances = model(ids)[:, -1].softmax(-1)
                    ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], dim=1)
            self.splits[split] = list(ids.split(batch))

    def batches(self, split):
        return self.splits[split]

    def losses(self, model, batch):
        logits = model(batch[:, :-1]).transpose(1, 2)
        nats = nn.functional.cross_entropy(logits, batch[:, 1:], reduction="none").double().sum(1).numpy()
        return Losses(nats, np.full(len(nats), float(batch.shape[1] - 1)), batch[:, 1:].numel())

    def reduce(self, losses):
        return float(np.exp(super().reduce(losses)))

    def reduce_without_each(self, losses):
        return np.exp(losses.without_each())
