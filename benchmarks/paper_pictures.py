"""The figures of the paper's cases: saving and loss beside the paper's, and the ablation over mu."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qslm.report.pictures import new_figure, save_figure

COLOURS = {"paper": "#7a8594", "literal": "#c8742b", "knapsack": "#1f6fb4"}
LABELS = {
    "paper": "paper, SpikeGPT-216M",
    "literal": "the paper's search, literally",
    "knapsack": "knapsack, the default",
}
LOSSES = {"sst2": "drop of accuracy (points)", "wikitext2": "rise of perplexity"}
ABLATED = {"sst2": "a3", "wikitext2": "b3"}
WIDTH = 0.26


def draw_cases(cases: Mapping[str, Any], path: Path) -> None:
    """Saving of every case, and the loss on the report split with its interval, beside the paper's."""
    figure = new_figure(11, 3.8)
    panels = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    for place, (strategy, colour) in enumerate(COLOURS.items()):
        for axes, task in zip(panels, (None, *LOSSES), strict=True):
            for x, case in enumerate(_of(cases, task)):
                _bar(axes, x + (place - 1) * WIDTH, case, strategy, colour, saving=task is None)
        panels[0].bar(0, 0, color=colour, label=LABELS[strategy])
    panels[0].set_ylabel("saved against float32 (%)")
    panels[0].set_ylim(0, 100)
    figure.legend(frameon=False, fontsize=9, ncols=3, loc="outside upper center")
    for axes, task in zip(panels, (None, *LOSSES), strict=True):
        names = [name for name, case in cases.items() if task in (None, case["task"])]
        axes.set_xticks(range(len(names)), names)
        if task is not None:
            axes.set_ylabel(LOSSES[task])
            axes.axhline(0, color="black", linewidth=0.8)
            for x, case in enumerate(_of(cases, task)):
                axes.hlines(case["limit"], x - 0.45, x + 0.45, color="#b3261e", linestyle="--", linewidth=1.2)
    _save(figure, path)


def draw_mu(cases: Mapping[str, Any], mus: Sequence[float], path: Path) -> None:
    """Score and saving of what is selected for every mu, in the cases of the widest budgets."""
    figure = new_figure(9, 5.4)
    panels = figure.subplots(2, 2, sharex=True)
    for column, (task, name) in enumerate(ABLATED.items()):
        upper, lower = panels[:, column]
        for strategy, found in cases.get(name, {"strategies": {}})["strategies"].items():
            _lines(upper, lower, found, strategy, mus)
        upper.set_title(f"{name}: {'more is better' if task == 'sst2' else 'less is better'}", fontsize=10)
        lower.set_xlabel("mu")
        lower.set_xticks(range(len(mus)), [f"{mu:g}" for mu in mus])
    panels[0, 0].set_ylabel("score S (Eq. 1), report split")
    panels[1, 0].set_ylabel("saved against float32 (%)")
    drawn = next((axes for axes in panels[0] if axes.lines), panels[0, 0])
    handles = drawn.get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=9, ncols=4, loc="outside upper center")
    _save(figure, path)


def _of(cases: Mapping[str, Any], task: str | None) -> list[Any]:
    return [case for case in cases.values() if task in (None, case["task"])]


def _bar(axes: Any, x: float, case: Any, strategy: str, colour: str, *, saving: bool) -> None:
    if strategy == "paper":
        lost = (1 if case["task"] == "sst2" else -1) * (case["paper"]["float"] - case["paper"]["value"])
        axes.bar(x, 100 * case["paper"]["saving"] if saving else lost, WIDTH, color=colour)
        return
    found = case["strategies"][strategy].get("smallest", {})
    if "selected" not in found:
        return
    if saving:
        axes.bar(x, 100 * found["saving"], WIDTH, color=colour)
        return
    loss = found["loss"]
    reach = [[loss["loss"] - loss["low"]], [loss["high"] - loss["loss"]]]
    axes.bar(x, loss["loss"], WIDTH, color=colour, yerr=reach, error_kw={"linewidth": 1, "capsize": 2})


def _lines(upper: Any, lower: Any, found: Any, strategy: str, mus: Sequence[float]) -> None:
    """By score for each mu in full, the smallest file dashed."""
    for chosen, style in ((False, "--"), (True, "-")):
        rows = [(place, mu, found.get(f"mu{mu:g}" if chosen else "smallest", {})) for place, mu in enumerate(mus)]
        rows = [one for one in rows if "selected" in one[2]]
        label = f"{strategy}, {'by score' if chosen else 'smallest file'}"
        drawn = {"color": COLOURS[strategy], "linestyle": style, "marker": "o" if chosen else None, "markersize": 4}
        places = [place for place, _, _ in rows]
        upper.plot(places, [row["scores"][f"{mu:g}"] for _, mu, row in rows], label=label, **drawn)
        lower.plot(places, [100 * row["saving"] for _, _, row in rows], **drawn)


def _save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with path.open("wb") as file:
        save_figure(figure, file)
