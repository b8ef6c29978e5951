"""The next steps of a KV cache that holds integers, from the calibration text."""

import torch
from torch import Tensor, nn

from qslm.calibration.calls import pieces
from qslm.conversion.convert import STEP_TOKENS
from qslm.spiking.cache import STATIC, CacheForm, hold, value_layers
from qslm.spiking.firing import calibrated_steps
from qslm.tasks.task import Task

TOKENS = 1 << 12  # of calibration text


@torch.inference_mode()
def calibrate_cache(model: nn.Module, task: Task, bits: int, next_step: str = STATIC) -> CacheForm:
    """The form of a KV cache of `bits` bits for a converted network, whose cache holds numbers from now on.

    Static next steps are those of the least squared error of every head on outputs of the spiking layers; dynamic ones
    are found while it runs. Raises CheckpointError and SpikeError as `hold` does, and what task and network raise.
    """
    hold(model, None)
    layers = value_layers(model)
    if next_step != STATIC:
        return CacheForm(bits)
    seen: dict[str, list[Tensor]] = {path: [] for path in layers}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, path=path: seen[path].append(output.flatten(0, -2)))
        for path, (layer, _) in layers.items()
    ]
    try:
        for call in pieces(model, task, TOKENS, STEP_TOKENS):
            model(*call.arguments, **call.keywords)
            if sum(map(len, next(iter(seen.values())))) >= TOKENS:
                break
    finally:
        for hook in hooks:
            hook.remove()
    steps = {path: calibrated_steps(torch.cat(some), bits, layers[path][1]) for path, some in seen.items()}
    return CacheForm(bits, {path: tuple(some.tolist()) for path, some in steps.items()})
