"""Where the parameters of a SpikeGPT start."""

import math

import torch
from torch import nn

from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import Block, SpikeGPT


def training_device() -> torch.device:
    """A GPU where PyTorch sees one, as for loaded checkpoints."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_spikegpt(config: SpikeGPTConfig, seed: int) -> SpikeGPT:
    """An untrained network; PyTorch's own initialization, which draws from a global generator, is not run."""
    with torch.device("meta"):
        model = SpikeGPT(config)
    model.to_empty(device="cpu")
    initialize(model, seed)
    return model


def initialize(model: SpikeGPT, seed: int) -> None:
    """Set all parameters in place, from `seed` alone.

    Matrices are orthogonal with gain 1: neurons start to fire once their currents have grown, which the arctangent
    surrogate lets them do (derived: upstream sets several matrices to zero, and a network of LIF then stays silent
    for long). Decay, bonus and token mixing follow RWKV-4's spread over channels and layers (SpikeGPT,
    `src/model.py`). The embedding is small, so that its signs can change while training is young.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()  # ones and zeros
        model.emb.weight.uniform_(-0.02, 0.02, generator=generator)
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        for layer, block in enumerate(blocks):
            _initialize_mixing(block, layer, len(blocks))


def _initialize_mixing(block: Block, layer: int, layers: int) -> None:
    attention = block.att
    width = attention.time_decay.numel()
    position = torch.arange(width) / max(width - 1, 1)
    depth = layer / max(layers - 1, 1)  # 0 to 1
    remaining = 1 - layer / layers  # 1 to almost 0
    zigzag = (torch.arange(width) + 1) % 3 - 1
    attention.time_decay.copy_(-5 + 8 * position ** (0.7 + 1.3 * depth))
    attention.time_first.copy_(math.log(0.3) + 0.5 * zigzag)
    share = (torch.arange(width) / width) ** remaining
    attention.time_mix_k.copy_(share.view(1, 1, -1))
    attention.time_mix_v.copy_((share + 0.3 * depth).view(1, 1, -1))
    attention.time_mix_r.copy_(share.sqrt().view(1, 1, -1))
    block.ffn.time_mix_k.copy_(share.view(1, 1, -1))
    block.ffn.time_mix_r.copy_(share.view(1, 1, -1))
