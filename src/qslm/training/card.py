"""What a finished training leaves: a checkpoint folder with its model card, loss curve and firing rates."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import Tensor

from qslm.errors import TrainingError
from qslm.formats import container
from qslm.models.neurons import SpikeTrace
from qslm.models.spikegpt import SpikeGPT
from qslm.training.loop import History


def firing_rates(model: SpikeGPT, ids: Tensor, mask: Tensor | None = None) -> list[dict[str, float]]:
    """Return the share of tokens on which neurons fire, one row a block: attention and feed-forward.

    `ids` (batch, tokens); padding, where `mask` is False, does not count.
    """
    model.eval()
    trace = SpikeTrace()
    with torch.inference_mode():
        model(ids, mask, trace)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    rates = [float(spikes[real].mean()) for spikes in trace.spikes]
    return [{"attention": a, "feed_forward": f} for a, f in zip(rates[::2], rates[1::2], strict=True)]


def write_checkpoint(
    folder: Path, model: SpikeGPT, tokenizer: Tokenizer, history: History, record: dict[str, Any]
) -> Path:
    """Write `model.safetensors` in float16, `config.json`, `tokenizer.json`, `training.json` and `loss.png`.

    Raises TrainingError on a weight beyond float16's range.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise TrainingError(f"{name} has values beyond float16's range.", "Train with a lower rate or more decay.")
    container.write(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    record = {**record, "torch": torch.__version__, "history": asdict(history)}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw_loss(history, folder / "loss.png")
    return folder


def draw_loss(history: History, path: Path) -> None:
    """Draw training and validation curve into a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in (("training", history.training), ("validation", history.validation)):
        axes.plot([step for step, _ in points], [value for _, value in points], label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats) or accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
