"""The section of energy: its numbers are those of energy.json, and a file of something else is not shown."""

import json
import math
import re
import shutil
from itertools import pairwise

import pytest

from qslm.errors import StudyError
from qslm.report import energy_figures, write_report
from qslm.report.read import read_run

FOREIGN = "<script>alert(2)</script>"


@pytest.fixture(scope="module")
def account(run):
    return json.loads((run / "energy.json").read_text())


@pytest.fixture(scope="module")
def figures(run):
    text = write_report(run).read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text)
    return json.loads(found)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run folder, and how to change its energy.json."""
    place = shutil.copytree(run, tmp_path / "run")

    def change(edit):
        content = json.loads((place / "energy.json").read_text())
        edit(content)
        (place / "energy.json").write_text(json.dumps(content))
        return place

    return change


def test_the_candidates_are_those_of_the_account(figures, account, run):
    lines = json.loads((run / "study.json").read_text())["tiers"]
    decoding = [account["candidates"][line["key"]]["decode"] for line in lines]
    data = figures["energy"]["data"]
    for axis, part in (("x", "memory_pj"), ("x2", "compute_pj")):
        marks = [t for t in data if t.get("text") and t.get("xaxis", "x") == axis and t["name"] != "selected"]
        pairs = [pair for trace in marks for pair in zip(trace["x"], trace["text"], strict=True)]
        numbered = {int(text.split("evaluation ")[1].split(",")[0]): x for x, text in pairs}
        assert len(pairs) == len(lines) > 3
        for line, found in zip(lines, decoding, strict=True):
            assert numbered[line["number"]] == pytest.approx(found[part] / 1e6)
        (star,) = (t for t in data if t["name"] == "selected" and t.get("xaxis", "x") == axis)
        assert star["x"] == pytest.approx([account["candidates"][account["selected"]]["decode"][part] / 1e6])
    assert [shape["name"] for shape in figures["energy"]["layout"]["shapes"]] == ["loss"]


def test_the_bars_of_all_blocks_are_the_account(figures, account, run):
    bars = figures["energy-blocks"]["data"]
    assert len(bars) == 2 * 3 * 2
    totals = {(one["scenario"], one["machine"]): one for one in account["accounts"]}
    for trace in bars:
        scenario = "prefill" if trace["yaxis"] == "y2" else "decode"
        machine, part = trace["legendgroup"].split()
        one = totals[scenario, machine]
        pj = one["memory_pj" if part == "memory" else "compute_pj"]
        assert sum(trace["y"]) * 1e6 * one["scenario_tokens"] == pytest.approx(pj)
    ticks = figures["energy-blocks"]["layout"]["xaxis"]["ticktext"]
    assert ticks == ["input", "attention 0", "attention 1", "output"]
    place = ticks.index("attention 1")
    (trace,) = (t for t in bars if t["legendgroup"] == "ran memory" and t["yaxis"] == "y")
    inside = [path for path, one in account["layers"].items() if one["block"] == "attention 1"]
    expected = sum(totals["decode", "ran"]["layers"][path]["memory_pj"] for path in inside)
    assert len(inside) == 3 and trace["y"][place] * 1e6 == pytest.approx(expected)


def test_the_bars_do_not_cover_each_other(figures):
    edges = sorted(
        (x - t["width"] / 2, x + t["width"] / 2)
        for t in figures["energy-blocks"]["data"]
        if t["yaxis"] == "y" and t["legendgroup"].endswith("memory")
        for x in t["x"]
    )
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(edges))


def test_the_words_say_what_the_numbers_are(run, account):
    text = write_report(run).read_text(encoding="utf-8")
    assert text.count('id="energy"') == text.count('id="energy-blocks"') == 1
    for said in ("an account, not a measurement", f"{account['tokens']:,} tokens", "Horowitz", "45 nm", "1,024 tokens"):
        assert said in text
    assert "selected allocation" in text and "the search split" in text  # the task has no calibration text


def test_the_pictures_hold_the_same_numbers(run, account):
    record = read_run(run)
    for name in ("energy", "energy-blocks"):
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    upper, _ = energy_figures.draw_by_block(record.energy).axes
    totals = {(one["scenario"], one["machine"]): one for one in account["accounts"]}
    shown = sum(bar.get_height() for bar in upper.patches)
    assert shown * 1e6 == pytest.approx(sum(totals["decode", m]["total_pj"] for m in ("ran", "integer", "float16")))
    left, right = energy_figures.draw_candidates(record, record.energy).axes
    for axes, part in ((left, "memory_pj"), (right, "compute_pj")):
        drawn = sorted(float(x) for marks in axes.collections for x, _ in marks.get_offsets())
        assert drawn == pytest.approx(sorted(one["decode"][part] / 1e6 for one in account["candidates"].values()))


def test_what_ended_early_is_not_drawn(early_run):
    record = read_run(early_run)
    early = [p for p in record.points if not p.complete]
    drawn = energy_figures.candidates(record, record.energy)["data"]
    texts = [t for trace in drawn if trace["name"] != "selected" for t in trace.get("text", [])]
    assert early and len(texts) == 2 * (len(record.points) - len(early))
    assert not any("ended early" in text for text in texts)
    (legend,) = energy_figures.draw_candidates(record, record.energy).legends
    assert not any("ended early" in text.get_text() for text in legend.get_texts())


def test_an_older_run_has_no_section(copy):
    place = copy(lambda content: None)
    write_report(place)
    assert (place / "figures" / "energy.png").exists()
    (place / "energy.json").unlink()
    text = write_report(place).read_text(encoding="utf-8")
    assert 'id="energy"' not in text and "energy" not in dict(read_run(place).provenance)
    assert not (place / "figures" / "energy.png").exists() and (place / "figures" / "bits.png").exists()


def test_without_a_selection_a_file_that_was_left_is_passed_over(failed_run, run, tmp_path):
    place = shutil.copytree(failed_run, tmp_path / "run")
    shutil.copy(run / "energy.json", place)
    assert 'id="energy"' not in write_report(place).read_text(encoding="utf-8")


def test_why_there_is_no_account_is_said(copy):
    def lose(content):
        for name in set(content) - {"version", "checkpoint", "selected"}:
            del content[name]
        content["missing"] = f"Nothing is known of {FOREIGN}."

    text = write_report(copy(lose)).read_text(encoding="utf-8")
    assert 'id="energy"' not in text and FOREIGN not in text
    assert "no account of energy</dt><dd>Nothing is known of &lt;script&gt;" in text


def test_its_texts_are_escaped(copy):
    def poison(content):
        content |= dict.fromkeys(("table", "source", "split", "weights_in", "activations"), FOREIGN)
        content["not_counted"] = [FOREIGN]

    assert FOREIGN not in write_report(copy(poison)).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["selected", "checkpoint", "version"])
def test_the_account_of_something_else_is_refused(copy, name):
    place = copy(lambda content: content.update({name: "e" * 64}))
    with pytest.raises(StudyError, match=rf"energy\.json has the {name} "):
        write_report(place)


def first_candidate(content):
    return next(iter(content["candidates"].values()))["decode"]


def first_layer(content):
    return next(iter(content["accounts"][0]["layers"].values()))


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("accounts"),
        lambda content: content.pop("candidates"),
        lambda content: content["candidates"].pop(content["selected"]),
        lambda content: content["accounts"].pop(0),
        lambda content: content.update(layers=[1]),
        lambda content: content.update(accounts={"decode": 1}),
        lambda content: content.update(not_counted=None),
        lambda content: content.update(tokens="many"),
        lambda content: next(iter(content["layers"].values())).update(block="elsewhere"),
        lambda content: content["accounts"][0].update(scenario_tokens=0),
        lambda content: first_candidate(content).update(memory_pj=math.nan),
        lambda content: first_candidate(content).update(memory_pj=-1.0),
        lambda content: first_candidate(content).update(compute_pj=10**400),
        lambda content: first_layer(content).update(compute_pj="1"),
        lambda content: first_layer(content).update(compute_pj=math.inf),
    ],
)
def test_a_damaged_account_is_refused_by_name(copy, edit):
    place = copy(edit)
    (place / "report.html").unlink(missing_ok=True)
    with pytest.raises(StudyError, match=r"energy\.json"):
        write_report(place)
    assert not (place / "report.html").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused_by_name(copy, content):
    place = copy(lambda content: None)
    (place / "energy.json").write_bytes(content)
    with pytest.raises(StudyError, match=r"energy\.json"):
        write_report(place)
