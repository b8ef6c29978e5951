"""Measure the shipped checkpoints on their report splits and write their model cards.

    python benchmarks/model_cards.py --data DIR

Writes `README.md` into each folder of `src/qslm/checkpoints/`, from `training.json` and what is measured here.
"""

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

from qslm import evaluate, load_checkpoint, make_task
from qslm.data.wikitext2 import load_wikitext2
from qslm.evaluation import Evaluation
from qslm.loading.checkpoint import Checkpoint
from qslm.loading.locating import SHIPPED, shipped_names

CARD = """# {name}

{purpose}

| | |
| --- | --- |
| network | SpikeGPT, {layers} layers, {width} wide, {vocabulary_size:,} words, binarized embedding |
| file | `model.safetensors`, {megabytes:.2f} MB, float16; these values are the baseline of every study |
| data | {text}: {splits} |
| command | `{command}` |
| settings | {settings} |
| steps | {steps:,} |
| training time, threads | {minutes:.0f} minutes, {threads} |
| PyTorch | {torch} |
{measured}

## Loss curve

![training and validation loss](loss.png)

## Spike rates

Share of tokens on which a neuron fires, by block, after training.

| block | attention | feed-forward |
| --- | --- | --- |
{rates}

`python benchmarks/model_cards.py --data DIR` measured the figures of this card and wrote it.
"""


def interval(evaluation: Evaluation, scale: float = 1.0) -> str:
    return f"{evaluation.value * scale:.2f} ({evaluation.low * scale:.2f} to {evaluation.high * scale:.2f})"


def listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def measure_text(checkpoint: Checkpoint, data: Path | None) -> dict[str, str]:
    task = make_task("wikitext2", tokenizer=checkpoint.tokenizer, config=checkpoint.config, data=data)
    evaluation = evaluate(checkpoint.model, task, "report")
    text = load_wikitext2(data).report.encode()
    packed = 8 * len(lzma.compress(text, preset=9)) / len(text)
    units = len(evaluation.losses.values)
    return {
        f"perplexity per token, WikiText-2 test ({units} windows, 95 % interval)": interval(evaluation),
        "bits per byte, WikiText-2 test": f"{evaluation.details['bits_per_byte']:.3f}",
        "perplexity per word, WikiText-2 test": f"{evaluation.details['word_perplexity']:.1f}",
        "`xz -9` of the same text, bits per byte": f"{packed:.3f}",
    }


def measure_sentences(checkpoint: Checkpoint, data: Path | None) -> dict[str, str]:
    task = make_task("sst2", tokenizer=checkpoint.tokenizer, config=checkpoint.config, data=data)
    evaluation = evaluate(checkpoint.model, task, "report")
    return {
        f"accuracy, SST-2 dev ({len(evaluation.losses.values)} sentences, 95 % interval)": interval(evaluation, 100.0)
        + " %"
    }


def card(name: str, data: Path | None) -> str:
    folder = SHIPPED / name
    record: dict[str, Any] = json.loads((folder / "training.json").read_text())
    checkpoint = load_checkpoint(folder)
    classifier = checkpoint.config["classes"] is not None
    measured = (measure_sentences if classifier else measure_text)(checkpoint, data)
    history = record["history"]
    rates = [(row["attention"], row["feed_forward"]) for row in record["rates"]]
    return CARD.format(
        name=name,
        purpose="A spike-driven sentence classifier, negative or positive, fine-tuned from `spikegpt-mini`."
        if classifier
        else "A spike-driven language model, small enough to ship and to study in minutes.",
        **{key: checkpoint.config[key] for key in ("layers", "width", "vocabulary_size")},
        megabytes=checkpoint.file_bytes / 1e6,
        **{key: record[key] for key in ("text", "command", "threads", "torch")},
        splits=listed({name: f"{count:,}" for name, count in record["splits"].items()}),
        settings=listed(record["settings"]),
        steps=history["training"][-1][0],
        minutes=history["seconds"] / 60,
        measured="\n".join(f"| {key} | {value} |" for key, value in measured.items()),
        rates="\n".join(f"| {i} | {100 * a:.1f} % | {100 * f:.1f} % |" for i, (a, f) in enumerate(rates)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="folder with wikitext-2/ and sst2/")
    arguments = parser.parse_args()
    for name in shipped_names():
        text = card(name, arguments.data)
        (SHIPPED / name / "README.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
