"""A small language model whose head is its embedding."""

import torch
from networks.encoder import seeded
from torch import nn


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.key, self.value = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        past = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        return x + self.value(torch.relu(self.key(self.norm(x + past))) ** 2)


class TiedNetwork(nn.Module):
    """Ids `(batch, tokens)` to logits `(batch, tokens, vocabulary)`."""

    def __init__(self, vocabulary=32, width=16, depth=3, seed=0):
        super().__init__()
        self.emb = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Mixer(width) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.emb.weight
        seeded(self, seed)

    def forward(self, ids):
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
