"""What a finished training leaves: a checkpoint folder with its model card, loss curve and firing rates."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import Tensor

from qslm import folders
from qslm.errors import TrainingError
from qslm.formats.container import stage_tensors
from qslm.formats.staging import Staged, commit, discard, stage, stage_bytes
from qslm.models.neurons import SpikeTrace
from qslm.models.spikegpt import SpikeGPT
from qslm.training.folder import saving
from qslm.training.loop import History, device_of


def firing_rates(model: SpikeGPT, ids: Tensor, mask: Tensor | None = None) -> list[dict[str, float]]:
    """The share of tokens on which neurons fire, one row a block: attention and feed-forward.

    `ids` (batch, tokens); padding, where `mask` is False, does not count.
    """
    model.eval()
    trace = SpikeTrace()
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    ids, real = ids.to(device_of(model)), real.to(device_of(model))
    with torch.inference_mode():
        model(ids, None if mask is None else real, trace)
    rates = [float(spikes[real].mean()) for spikes in trace.spikes]
    return [{"attention": a, "feed_forward": f} for a, f in zip(rates[::2], rates[1::2], strict=True)]


def write_checkpoint(
    folder: Path, model: SpikeGPT, tokenizer: Tokenizer, history: History, record: Mapping[str, Any]
) -> Path:
    """Write `model.safetensors` in float16, `config.json`, `tokenizer.json`, `training.json` and `loss.png`.

    All are written beside their places and moved there together, the weights last. Raises TrainingError on a weight
    beyond float16's range, and when a file cannot be written; then the folder is as it was.
    """
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise TrainingError(f"{name} has values beyond float16's range.", "Train with a lower rate or more decay.")
    full = {
        **record,
        "torch": history.torch or torch.__version__,
        "threads": history.threads or torch.get_num_threads(),
        "history": {name: getattr(history, name) for name in ("training", "validation", "seconds")},
    }
    texts = {
        folders.TOKENIZER: tokenizer.to_str(),
        folders.CONFIG: json.dumps(model.config.to_dict(), indent=2) + "\n",
        folders.RECORD: json.dumps(full, indent=1) + "\n",
    }
    staged: list[Staged] = []
    with saving(folder):
        try:
            for file in _stage_all(folder, texts, history, state):
                staged.append(file)
            commit(staged)
        finally:
            discard(staged)  # finds nothing where all were moved
    return folder


def _stage_all(
    folder: Path, texts: Mapping[str, str], history: History, state: Mapping[str, Tensor]
) -> Iterator[Staged]:
    for name, text in texts.items():
        yield stage_bytes(folder / name, text.encode())
    yield stage(folder / folders.CURVE, lambda file: draw_loss(history, file))
    yield stage_tensors(folder / folders.MODEL, state, "")[0]


def draw_loss(history: History, file: IO[bytes]) -> None:
    """Draw the training and the validation curve as a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in (("training", history.training), ("validation", history.validation)):
        axes.plot([step for step, _ in points], [value for _, value in points], label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats) or accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png", dpi=110)
