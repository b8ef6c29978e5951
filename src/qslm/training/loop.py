"""The training loop: AdamW, warm-up and cosine decay, saved every two minutes, resumable to the step."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from qslm import _native
from qslm.errors import TrainingError
from qslm.formats.staging import commit, stage
from qslm.progress import Progress
from qslm.training.folder import saving

SAVE_SECONDS = 120.0
FINAL_RATE = 0.02  # share of the peak rate at the end of the cosine


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with linear warm-up, cosine decay and gradient clipping."""

    steps: int
    peak_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_norm: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_rate * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass
class History:
    """What a training has seen: mean training loss and validation figures, by step.

    `torch` and `threads` are of the process that trained last; empty in a state from before they were kept.
    """

    training: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    torch: str = ""
    threads: int = 0


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of `model` are."""
    return next(model.parameters()).device


def generator_of(seed: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of step or epoch `number` of the training with `seed`, for tensors on `device`.

    PyTorch's CPU generator sees only the low 32 bits of what seeds it, so both are mixed into those.
    """
    return torch.Generator(device).manual_seed((seed * 0x9E3779B1 + number) % 2**32)


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices alone."""
    matrices = [p for p in model.parameters() if p.squeeze().ndim > 1]
    vectors = [p for p in model.parameters() if p.squeeze().ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.98), fused=True)


def train(
    model: nn.Module,
    settings: OptimizerSettings,
    loss_of_step: Callable[[int], Tensor],
    validate: Callable[[], float],
    *,
    validate_every: int,
    state_file: Path,
    identity: dict[str, Any],
    progress: Progress,
) -> History:
    """Train `model` in place to the last step and return the history.

    `loss_of_step(step)` draws everything random from the step's number, so a training that was killed goes on from
    `state_file` with the same batches and the same dropout. Raises TrainingError when `state_file` belongs to a
    training with another `identity` or cannot be written, or when the loss is no longer finite.
    """
    _native.keep_freed_memory()
    optimizer = make_optimizer(model, settings)
    start, history = resume(state_file, identity, model, optimizer)
    clock, saved, recent = time.monotonic(), time.monotonic(), []
    for step in progress.track(range(start, settings.steps), settings.steps - start, "training"):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_norm)
        optimizer.step()
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise TrainingError(
                f"The loss of step {step} is {recent[-1]}.",
                f"Lower the rate, now {settings.peak_rate}, and start anew.",
            )
        last = step + 1 == settings.steps
        if (step + 1) % 50 == 0 or last:
            history.training.append((step + 1, sum(recent) / len(recent)))
            recent = []
        if (step + 1) % validate_every == 0 or last:
            history.validation.append((step + 1, validate()))
            progress.message(f"step {step + 1}: validation {history.validation[-1][1]:.4f}")
        if last or (time.monotonic() - saved > SAVE_SECONDS and not recent):
            history.seconds += time.monotonic() - clock
            history.torch, history.threads = torch.__version__, torch.get_num_threads()
            clock = saved = time.monotonic()
            save(state_file, identity, step + 1, model, optimizer, history)
    return history


def save(
    path: Path,
    identity: dict[str, Any],
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: History,
) -> None:
    """Write the state so that a kill at any moment leaves the old or the new one. Raises TrainingError."""
    state = {
        "identity": json.dumps(identity, sort_keys=True),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": json.dumps(asdict(history)),
    }

    def content(file: IO[bytes]) -> None:
        torch.save(state, file)

    with saving(path.parent):
        commit([stage(path, content)])


def resume(
    path: Path, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, History]:
    """Load the state of `path` into model and optimizer; return the next step and the history.

    Raises TrainingError when the file is damaged, or of another training or network.
    """
    if not path.exists():
        return 0, History()
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        before = dict(json.loads(state["identity"]))
        step, history = int(state["step"]), History(**json.loads(state["history"]))
        tensors, moments = dict(state["model"]), dict(state["optimizer"])
    except Exception as error:  # a damaged file fails in many ways inside torch.load
        raise TrainingError(
            f"{path} is damaged, or not the state of a training: it cannot be read.",
            "Restore a copy, or delete it to start anew.",
        ) from error
    changed = {
        key: (before.get(key), identity.get(key)) for key in before | identity if before.get(key) != identity.get(key)
    }
    if changed:
        listed = ", ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in sorted(changed.items()))
        raise TrainingError(f"{path} belongs to another training: {listed}.", "Name another output folder.")
    try:
        model.load_state_dict(tensors)
        optimizer.load_state_dict(moments)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().rstrip(".")
        raise TrainingError(f"{path} is of another network: {reason}.", "Name another output folder.") from error
    return step, history
