"""Tokens per second of one training step: fused kernels against plain PyTorch, step by step in turn in one run.

Both networks are the same SpikeGPT with the same optimizer, the same dropout, and bfloat16 autocast. The plain one
computes WKV and LIF by PyTorch loops along the tokens, and its loss by the ordinary cross entropy of all logits.
"""

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from qslm import _native
from qslm.models import spikegpt
from qslm.models.config import SpikeGPTConfig
from qslm.models.neurons import LIF, Neuron
from qslm.models.spikegpt import SpikeGPT
from qslm.models.wkv import wkv_loop
from qslm.training.initialize import new_spikegpt
from qslm.training.loop import OptimizerSettings, make_optimizer
from qslm.training.loss import next_token_loss

Loss = Callable[[SpikeGPT, Tensor], Tensor]


@contextlib.contextmanager
def plain_pytorch() -> Iterator[None]:
    """Let SpikeGPT compute its recurrences by PyTorch loops."""
    with patch.object(spikegpt, "wkv", wkv_loop), patch.object(LIF, "forward", Neuron.forward):
        yield


def fused_loss(model: SpikeGPT, windows: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, _ = model.hidden(windows[:, :-1], None, None)
    return next_token_loss(x.flatten(0, 1), model.head.weight, windows[:, 1:].flatten())


def plain_loss(model: SpikeGPT, windows: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


class Trainee:
    """A network in training, and the seconds that its steps took."""

    def __init__(self, config: SpikeGPTConfig, loss: Loss) -> None:
        self.model = new_spikegpt(config, seed=0).train()
        self.model.dropout.rate = 0.1
        self.settings = OptimizerSettings(1000, 2e-3, 1, 0.1)
        self.optimizer = make_optimizer(self.model, self.settings)
        self.loss = loss
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, windows: Tensor) -> None:
        self.model.dropout.generator = torch.Generator().manual_seed(len(self.losses))
        start = time.perf_counter()
        loss = self.loss(self.model, windows)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    def result(self, tokens: int, warm_up: int) -> dict[str, float]:
        seconds = self.seconds[warm_up:]
        median = statistics.median(seconds)
        return {
            "tokens_per_second": tokens / median,
            "seconds_per_step": median,
            "fastest": min(seconds),
            "slowest": max(seconds),
            "last_loss": self.losses[-1],
        }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    _native.keep_freed_memory()
    config = SpikeGPTConfig(options.vocabulary, options.width, options.layers, 4 * options.width, options.context)
    fused, plain = Trainee(config, fused_loss), Trainee(config, plain_loss)
    for step in range(options.warm_up + options.steps):
        generator = torch.Generator().manual_seed(step)
        windows = torch.randint(options.vocabulary, (options.batch, options.context + 1), generator=generator)
        fused.step(windows)
        with plain_pytorch():
            plain.step(windows)
    tokens = options.batch * options.context
    results = {name: t.result(tokens, options.warm_up) for name, t in (("fused", fused), ("plain", plain))}
    ratios = [p / f for f, p in zip(fused.seconds[options.warm_up :], plain.seconds[options.warm_up :], strict=True)]
    told = {name: value for name, value in vars(options).items() if name != "json"}
    return {**told, "torch": torch.__version__, "processor": processor(), **results, "ratio": statistics.median(ratios)}


def processor() -> str:
    """The name of the processor, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    sizes = {"width": 256, "layers": 6, "vocabulary": 4096, "batch": 16, "context": 256, "steps": 8, "warm-up": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{options.width} x {options.layers}, {options.vocabulary:,} words, batch {options.batch} x {options.context}, "
        f"PyTorch {found['torch']}, {options.threads} threads, {found['processor']}; "
        f"medians of {options.steps} steps in turn"
    )
    for name in ("fused", "plain"):
        row = found[name]
        print(f"{name}: {row['tokens_per_second']:8,.0f} tokens per second, {row['seconds_per_step']:.3f} s a step")
    print(f"ratio: {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
