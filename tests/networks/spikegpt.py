"""Small SpikeGPTs with random weights under which the neurons do fire."""

import torch

from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import SpikeGPT


def random_spikegpt(
    vocabulary=31, width=24, layers=2, ffn_width=40, context=32, classes=None, binary=True, seed=0, dtype=torch.float32
):
    """A SpikeGPT in evaluation mode; every parameter is drawn from a generator of its own."""
    config = SpikeGPTConfig(vocabulary, width, layers, ffn_width, context, classes, binary)
    with torch.device("meta"):
        model = SpikeGPT(config)
    model.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(name, parameter.shape, generator))
    return model.requires_grad_(False).eval()


def skewed_spikegpt(strength=1.5, **shape):
    """What `random_spikegpt` computes, by channels of unlike sizes: e^(strength z) times as large, z normal."""
    model = random_spikegpt(**shape)
    generator = torch.Generator().manual_seed(8)
    for fold in model.folds():
        readers = [model.get_parameter(name) for name in fold.consumers]
        sizes = torch.exp(strength * torch.randn(readers[0].shape[1], generator=generator))
        for maker in map(model.get_parameter, fold.producers):
            maker.mul_((sizes ** (1 / fold.degree)).reshape(-1, *[1] * (maker.dim() - 1)))
        for reader in readers:
            reader.div_(sizes)
    return model


def _values(name, shape, generator):
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = name.rsplit(".", 1)[-1]
    if ".ln" in name or name.startswith("ln"):
        return (kind == "weight") + 0.3 * noise
    if kind.startswith("time_mix"):
        return torch.sigmoid(noise)
    if kind == "time_decay":
        return 2 * noise - 1
    if len(shape) == 1 or name == "emb.weight":
        return noise
    gain = 6 if name.endswith(("att.output.weight", "ffn.value.weight")) else 1.5
    return gain * noise / shape[1] ** 0.5


def random_ids(model, batch, tokens, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocabulary_size, (batch, tokens), generator=generator)
