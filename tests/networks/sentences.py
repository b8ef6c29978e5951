"""Sentences of unlike lengths in padded batches, as a classification task gives them to a network."""

import numpy as np
import torch

from qslm.tasks.classification import SentenceBatch
from qslm.tasks.task import Losses, Task

LENGTHS = (20, 3, 11, 20, 7, 1, 16, 20)


class Padded(Task):
    """Accuracy on random sentences with padding on the right, where any ids stand that `padding` draws."""

    name, metric, unit = "padded", "accuracy", "sentence"

    def __init__(self, vocabulary=40, copies=6, padding=0):
        self.found = []
        for copy in range(copies):
            drawn = (torch.Generator().manual_seed(copy), torch.Generator().manual_seed(99 + padding))
            ids, other = (torch.randint(1, vocabulary, (len(LENGTHS), 20), generator=one) for one in drawn)
            mask = torch.arange(20) < torch.tensor(LENGTHS)[:, None]
            labels, units = torch.arange(len(LENGTHS)) % 2, torch.arange(len(LENGTHS)) + copy * len(LENGTHS)
            self.found.append(SentenceBatch(torch.where(mask, ids, other), mask, labels, units))

    @property
    def tokens(self):
        """Of text in all batches."""
        return sum(int(batch.mask.sum()) for batch in self.found)

    def batches(self, split):
        return self.found

    def losses(self, model, batch):
        with torch.inference_mode():
            right = (model(batch.ids, batch.mask).argmax(-1) == batch.labels).double().numpy()
        return Losses(right, np.ones(len(right)), batch.ids.numel(), batch.units.numpy())
