"""A bidirectional spiking encoder of SpikeBERT's shape, small enough for tests."""

import torch
from torch import Tensor, nn


class Lif(nn.Module):
    """Leaky integrate-and-fire over the first axis (time steps): tau 2, hard reset to 0."""

    def __init__(self, threshold=1.0):
        super().__init__()
        self.threshold = threshold

    def forward(self, currents: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(currents[0]), []
        for current in currents:
            membrane = membrane + (current - membrane) / 2.0
            spike = (membrane >= self.threshold).to(current.dtype)
            membrane = membrane * (1 - spike)
            spikes.append(spike)
        return torch.stack(spikes)


class Normed(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.m, self.ln, self.lif = nn.Linear(width, out), nn.LayerNorm(out), Lif()

    def forward(self, spikes):
        return self.lif(self.ln(self.m(spikes)))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = Normed(width, width), Normed(width, width), Normed(width, width)
        self.last = Normed(width, width)
        self.lif = Lif(0.5)

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.last(self.lif(q @ k.transpose(-2, -1) @ v * 0.125))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = Attention(width)
        self.mlp = nn.Sequential(Normed(width, 2 * width), Normed(2 * width, width))

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class SpikingEncoder(nn.Module):
    """Ids `(batch, tokens)` to logits `(batch, classes)`, over `steps` time steps; no causal mask."""

    def __init__(self, vocabulary=40, width=16, depth=2, classes=8, steps=3, seed=0):
        super().__init__()
        self.steps = steps
        self.emb = nn.Embedding(vocabulary, width)
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.last_ln = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(width, classes)
        seeded(self, seed)

    def forward(self, ids, mask=None):
        x = self.emb(ids).ge(0).to(self.emb.weight.dtype).expand(self.steps, -1, -1, -1)
        for block in self.encoder.blocks:
            x = block(x)
        return self.classifier(self.dropout(self.last_ln(x)).mean(2)).mean(0)


def seeded(model, seed):
    """Draw every matrix from a generator of its own, so that no global one is touched."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model.eval()
