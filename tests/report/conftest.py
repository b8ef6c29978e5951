from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from qslm.budget import Budget
from qslm.search import Options
from qslm.study import search
from qslm.tasks import Losses, Task

HOSTILE = '"><script>alert(1)</script>&</script>'
WIDTH = 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.add_module("<i>key", nn.Linear(WIDTH, WIDTH))
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.value(torch.tanh(getattr(self, "<i>key")(self.norm(x))))


class Network(nn.Module):
    """Two alike blocks between an embedding and a head; one module bears a hostile name."""

    def __init__(self, seed=0):
        super().__init__()
        self.emb = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 11)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Guess(Task):
    """How often the network guesses what the float network guessed, on random ids."""

    name, metric, unit = HOSTILE, "accuracy", "sentence"

    def __init__(self, noise=0.15, batch=60):
        self.batch = batch
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(11, (2, 60, 1), generator=generator)
        truth = Network()(self.ids[..., 0]).argmax(-1)
        wrong = torch.rand(truth.shape, generator=generator) < noise
        self.truth = torch.where(wrong, (truth + 1) % 11, truth)

    def batches(self, split):
        place = {"search": 0, "report": 1}[split]
        return list(zip(self.ids[place].split(self.batch), self.truth[place].split(self.batch), strict=True))

    def losses(self, model, batch):
        ids, truth = batch
        right = (model(ids)[:, 0].argmax(-1) == truth).double().numpy()
        return Losses(right, np.ones(len(right)), ids.numel())


def study(folder, **budget):
    model = Network()
    checkpoint = SimpleNamespace(
        name=HOSTILE, model=model, tokenizer=None, config={"k": HOSTILE}, digest="d" * 64, file_bytes=9000
    )
    return search(
        checkpoint,
        Guess(),
        budget=Budget(**budget),
        output=folder,
        options=Options(strategy="tiered", precisions=(8, 4, 2)),
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The run folder of a real study of a tiny network, all of whose names are hostile."""
    folder = tmp_path_factory.mktemp("run")
    study(folder, max_bytes=6000, max_loss=15.0, kind="points")
    return folder


@pytest.fixture(scope="session")
def early_run(tmp_path_factory):
    """A run folder of a search by random draws, some of whose evaluations ended early."""
    folder = tmp_path_factory.mktemp("early")
    model, task = Network(), Guess(batch=5)
    task.exchangeable = True
    options = Options(strategy="random", max_evaluations=8, precisions=(8, 4, 2))
    search(model, task, budget=Budget(None, 15.0, "points"), output=folder, options=options)
    return folder


@pytest.fixture(scope="session")
def failed_run(tmp_path_factory):
    """A run folder in which nothing was accepted."""
    from qslm.errors import StudyError

    folder = tmp_path_factory.mktemp("failed")
    with pytest.raises(StudyError, match="None of"):
        study(folder, max_bytes=3410, max_loss=0.0, kind="points")
    return folder
