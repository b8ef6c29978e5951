"""The paper's cases a1 to a3 and b1 to b3, and its ablation over mu.

    python benchmarks/paper_cases.py --data DIR [--docs docs] [--quick] [--json]
    python benchmarks/paper_cases.py --data DIR --checkpoint LM.pth --classifier SST2.pth --tokenizer 20B_tokenizer.json

Each case is studied by the knapsack with the default options and by the paper's tiered search taken literally, which
measures every allocation whole; of each the smallest file is selected, and the best score (Eq. 1) for every mu. The
memory budgets are the same share of float32 as in the paper, the limits of quality the same numbers. Without
checkpoints of your own it takes the shipped ones.

Every study has a run folder with its report in --output, and starts from what the earlier ones of its task have
measured; a killed program goes on where it was. `paper-cases.json` is written there, `paper-cases.md` and two figures
to --docs (the same folder without). One thread, so that no figure depends on the number of cores; run the two tasks
(--task) side by side to use two, then once more for both. --quick takes a part of the data.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from paper_pictures import draw_cases, draw_mu

from qslm import Budget, Options, find_anatomy, load_checkpoint, make_task, search
from qslm.budget import score
from qslm.cli.progress import Listener
from qslm.errors import BudgetError, StudyError
from qslm.loading.checkpoint import Checkpoint
from qslm.report import write_report
from qslm.study import Selection
from qslm.study.folder import LEDGER
from qslm.tasks import Task
from qslm.units import MB

PAPER_MIB = 821.7  # SpikeGPT-216M in float32
MUS = (0.0, 1.0, 5.0, 20.0)  # derived: the paper's list is not known
SMALLEST = "smallest"
TOLD = "told.json"  # in the run folder of a study that has ended
STRATEGIES = {"knapsack": Options(), "literal": Options(strategy="literal", early=False)}
SEARCH = {"wikitext2": 65536, "sst2": 1500}  # tokens, sentences
QUICK = {"wikitext2": 12288, "sst2": 400}
QUICK_REPORT = {"wikitext2": 24576, "sst2": 872}
FLOATS = {"sst2": 85.7, "wikitext2": 26.5}  # of the paper: accuracy in percent, perplexity
SHIPPED = {"sst2": "spikegpt-mini-sst2", "wikitext2": "spikegpt-mini"}


@dataclass(frozen=True)
class Case:
    """A case of the paper: MiB and limit (points of accuracy, perplexity), and the saving and metric it reports."""

    name: str
    task: str
    memory: float
    limit: float
    saving: float
    value: float


CASES = (
    Case("a1", "sst2", 400, 2.0, 85.7, 84.4),
    Case("a2", "sst2", 400, 5.0, 86.5, 81.3),
    Case("a3", "sst2", 420, 5.0, 86.5, 81.3),
    Case("b1", "wikitext2", 400, 1.0, 68.7, 24.6),
    Case("b2", "wikitext2", 400, 4.0, 62.4, 23.2),
    Case("b3", "wikitext2", 420, 4.0, 68.7, 24.4),
)

ABOUT = """\
# The paper's cases

Measured by `python benchmarks/paper_cases.py`{quick}.
Report splits: WikiText-2 test, SST-2 dev. The loss is against float32 on the same windows or sentences, with its
two-sided 95 % interval, and the word beside it says whether the report split shows the limit to be kept. Saved is all
tensors, with scales and zero points, against float32, as the paper counts. Evaluations count the baseline and the two
of the report split. Budgets are 400 and 420 of the paper's 821.7 MiB, so {shares} of float32.

{table}

![saving and loss of every case beside the paper's](paper-cases.png)

Selected by score (Eq. 1) instead, S = A - mu m or P + mu m with m the share of float32 that is left; the paper's list
of mu is not known:

{ablation}

![score and saving against mu](paper-mu.png)

What this shows: under the paper's limits, on the report split and with intervals, what the paper's own search finds
and what the knapsack finds with the same quantizer, widths and bytes.

What it does not show:

- {models}
- How the paper's quantizer does. Here weights have one scale a row, found by clip search, the binarized embedding is
  kept as signs, which is exact, and vectors stay in float32. Its prototype has one scale a tensor.
- A difference to the paper's perplexities. All of its quantized perplexities are below that of float32, by 1.9 to 3.3;
  b1, b3 and its ablation have the same saving and 24.6, 24.4 and 24.0. That is the noise of randomly drawn windows, 7 %
  in 18 runs of its prototype, not an effect of rounding. Its accuracies are of the 872 sentences that the search saw.
- An effect of the memory budget: between 400 and 420 MiB lies only the uniform 16 bit network, which no selection
  needs, so a2 and a3, and b2 and b3, are the same question.
"""


def studies(task: str | None) -> Iterator[tuple[Case, str, float | None]]:
    """Every case with a strategy and what is preferred: None for the smallest file, which is asked first, or a mu."""
    for mu in (None, *MUS):
        for case in CASES:
            for strategy in STRATEGIES:
                if task in (None, case.task):
                    yield case, strategy, mu


def opened(task: str, options: argparse.Namespace, progress: Listener) -> tuple[Checkpoint, Task]:
    """The network of a task, and the task."""
    own = options.classifier if task == "sst2" else options.checkpoint
    given = {"tokenizer": options.tokenizer} if own and options.tokenizer else {}
    checkpoint = load_checkpoint(own or SHIPPED[task], data=options.data, progress=progress, **given)
    size = checkpoint.config["context_length"] if task == "wikitext2" else 1
    counts = {"search": (QUICK if options.quick else SEARCH)[task]} | (
        {"report": QUICK_REPORT[task]} if options.quick else {}
    )
    windows = {split: max(count // size, 2) for split, count in counts.items()}
    made = make_task(
        task,
        tokenizer=checkpoint.tokenizer,
        config=checkpoint.config,
        data=options.data,
        windows=windows,
        progress=progress,
    )
    return checkpoint, made


def run(
    case: Case, strategy: str, mu: float | None, subject: tuple[Checkpoint, Task], progress: Listener, output: Path
) -> dict[str, Any]:
    """One study in a run folder of its own, which starts from what the earlier ones of its task have measured."""
    checkpoint, task = subject
    folder, shared = output / name_of(case, strategy, mu), output / f"{case.task}.sqlite"
    if shared.exists() and not (folder / LEDGER).exists():
        hand_on(shared, folder / LEDGER)
    memory = round(case.memory / PAPER_MIB * find_anatomy(checkpoint.model).float32_bytes)
    budget = Budget(memory, case.limit, "points" if case.task == "sst2" else "absolute", mu=mu)
    progress.message(f"---- {folder.name}")
    try:
        found = search(checkpoint, task, budget=budget, output=folder, options=STRATEGIES[strategy], progress=progress)
    except (BudgetError, StudyError) as error:  # nothing was accepted, or the sample cannot show the limit
        return {"refused": f"{error.problem} {error.remedy}"}
    hand_on(folder / LEDGER, shared)
    write_report(folder)
    return told(found, case)


def hand_on(ledger: Path, to: Path) -> None:
    """Copy a ledger that no study has open; the copy is there whole or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ledger, part := to.with_suffix(".part"))
    part.replace(to)


def name_of(case: Case, strategy: str, mu: float | None) -> str:
    """The run folder of a study."""
    return f"{case.name}-{strategy}-{SMALLEST if mu is None else f'mu{mu:g}'}"


def told(selection: Selection, case: Case) -> dict[str, Any]:
    """What a study found, in numbers."""
    selected, difference = selection.selected, selection.difference
    higher = case.task == "sst2"
    return {
        "baseline": selection.baseline.to_dict(),
        "selected": selected.figures.to_dict(),
        "loss": {key: getattr(difference, key) for key in ("loss", "low", "high", "conclusion")},
        "saving": selected.saving,
        "saving_file": selected.saving_file,
        "scores": {f"{mu:g}": score(selected.value, 1 - selected.saving, mu, higher) for mu in MUS},
        "evaluations": selection.evaluations,
        "seconds": selection.seconds,
    }


def collect(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All that was found, case by case, beside the paper."""
    cases: dict[str, Any] = {}
    for case in CASES:
        wanted = {
            strategy: {
                SMALLEST if mu is None else f"mu{mu:g}": rows[name]
                for mu in (None, *MUS)
                if (name := name_of(case, strategy, mu)) in rows
            }
            for strategy in STRATEGIES
        }
        if any(wanted.values()):
            paper = {"float": FLOATS[case.task], "value": case.value, "saving": case.saving / 100}
            budget = {"memory_share": case.memory / PAPER_MIB, "limit": case.limit}
            cases[case.name] = {"task": case.task, **budget, "paper": paper, "strategies": wanted}
    return cases


def table(cases: dict[str, Any]) -> str:
    """The smallest file of each case by each strategy, beside the paper's."""
    lines = [
        "| case | limit | search | float | selected | loss, 95 % interval | | file | saved | evaluations | paper |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, case in cases.items():
        accuracy = case["task"] == "sst2"
        limit = f"drop of {case['limit']:g} points" if accuracy else f"rise of {case['limit']:g}"
        paper = case["paper"]
        theirs = f"{100 * paper['saving']:.1f} % saved, {paper['value']:g} (float {paper['float']:g})"
        for strategy, found in case["strategies"].items():
            start = f"| {name} | {limit} | {strategy} |"
            lines.append(f"{start} {cells(found[SMALLEST], accuracy)} | {theirs} |" if SMALLEST in found else start)
    return "\n".join(lines)


def cells(row: dict[str, Any], accuracy: bool) -> str:
    """What was selected, as cells of a table."""
    if "refused" in row:
        return f"| | {row['refused']} | | | |"
    scale, unit = (100.0, " %") if accuracy else (1.0, "")
    loss = row["loss"]
    return (
        f"{scale * row['baseline']['value']:.2f}{unit} | {scale * row['selected']['value']:.2f}{unit} "
        f"| {loss['loss']:+.2f} ({loss['low']:+.2f} to {loss['high']:+.2f}) | {loss['conclusion']} "
        f"| {row['selected']['bytes'] / MB:.2f} MB | {100 * row['saving']:.1f} % | {row['evaluations']}"
    )


def ablation(cases: dict[str, Any]) -> str:
    """Metric, saving and score of what is selected for every mu."""
    heads = " | ".join(f"mu = {mu:g}" for mu in MUS)
    lines = [f"| case | search | {heads} |", "| --- | --- |" + " --- |" * len(MUS)]
    for name, case in cases.items():
        scale, unit = (100.0, " %") if case["task"] == "sst2" else (1.0, "")
        for strategy, found in case["strategies"].items():
            rows = [found.get(f"mu{mu:g}", {}) for mu in MUS]
            parts = [
                f"{scale * row['selected']['value']:.2f}{unit}, {100 * row['saving']:.1f} % saved, "
                f"S {row['scores'][f'{mu:g}']:.2f}"
                if "selected" in row
                else row.get("refused", "")
                for mu, row in zip(MUS, rows, strict=True)
            ]
            lines.append(f"| {name} | {strategy} | {' | '.join(parts)} |")
    return "\n".join(lines)


def document(cases: dict[str, Any], options: argparse.Namespace) -> str:
    """The page for the docs."""
    own = {"sst2": options.classifier, "wikitext2": options.checkpoint}
    given = [SHIPPED[task] for task, path in own.items() if path is None]
    another = f"That SpikeGPT-216M behaves alike: {' and '.join(given)} were studied, thirty times smaller."
    models = another if given else "That these checkpoints are the paper's: its own were not published."
    shares = " and ".join(f"{100 * memory / PAPER_MIB:.1f} %" for memory in (400, 420))
    quick = " --quick, so on a part of the data" if options.quick else ""
    return ABOUT.format(quick=quick, shares=shares, table=table(cases), ablation=ablation(cases), models=models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with wikitext-2/ and sst2/")
    parser.add_argument("--checkpoint", type=Path, help="language model for the cases b; the shipped one without")
    parser.add_argument("--classifier", type=Path, help="classifier for the cases a; the shipped one without")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of those, where none lies beside them")
    parser.add_argument("--output", type=Path, help="folder of the run folders (runs/paper-cases, with --quick -quick)")
    parser.add_argument("--docs", type=Path, help="folder of the page and the figures; that of --output without")
    parser.add_argument("--task", choices=sorted(SHIPPED), help="only the cases of this task")
    parser.add_argument("--quick", action="store_true", help="a part of the data, for less than 30 minutes")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    output = options.output or Path("runs") / ("paper-cases-quick" if options.quick else "paper-cases")
    output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    subjects: dict[str, tuple[Checkpoint, Task]] = {}
    with Listener() as progress:
        for case, strategy, mu in studies(options.task):
            name = name_of(case, strategy, mu)
            if not (output / name / TOLD).exists():
                if case.task not in subjects:
                    subjects[case.task] = opened(case.task, options, progress)
                row = run(case, strategy, mu, subjects[case.task], progress, output)
                (output / name).mkdir(exist_ok=True)
                (output / name / TOLD).write_text(json.dumps(row), encoding="utf-8")
            rows[name] = json.loads((output / name / TOLD).read_text(encoding="utf-8"))
    cases = collect(rows)
    content = json.dumps({"quick": options.quick, "mus": MUS, "cases": cases}, indent=2)
    (output / "paper-cases.json").write_text(content + "\n", encoding="utf-8")
    docs = options.docs or output
    docs.mkdir(parents=True, exist_ok=True)
    page = document(cases, options)
    (docs / "paper-cases.md").write_text(page, encoding="utf-8")
    draw_cases(cases, docs / "paper-cases.png")
    draw_mu(cases, MUS, docs / "paper-mu.png")
    print(content if options.json else page)


if __name__ == "__main__":
    main()
