import json
import math
import shutil
from dataclasses import replace

import pytest
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken

from qslm.errors import QslmError, StudyError
from qslm.report import write_sensitivity
from qslm.report.sensitivity import render
from qslm.report.sensitivity_figures import arrange, draw, heat_map, quantities, shades
from qslm.search import Options
from qslm.study import read_sensitivity, sensitivity

HOSTILE = '"><script>alert(1)</script>&</script>'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity")
    model = random_spikegpt(vocabulary=32, layers=2)
    task = NextToken(model)
    task.name = HOSTILE
    sensitivity(model, task, output=folder, options=Options(precisions=(4, 2)), level="all")
    return folder


@pytest.fixture
def found(run):
    return read_sensitivity(run)


def test_the_page_holds_every_figure_once_and_no_hostile_text(run, found):
    page = write_sensitivity(run)
    assert page == run / "sensitivity.html"
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert text.count("<tr>") == 1 + len(found.ranked())
    drawn = json.loads(text.split('<script type="application/json" id="figures">')[1].split("</script>")[0])
    assert list(drawn) == ["loss", "divergence", "flipped", "drift"]
    assert all(f'id="{name}"' in text for name in drawn)
    assert (run / "figures" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_is_of_the_lines(found):
    cells = arrange(found)
    assert cells.widths == (4, 2)
    assert cells.names[:3] == ("all attention blocks", "attention 0", "attention 0 att.key")
    assert len(cells.names) == 1 + 2 + 14 + 1  # a module of one site is one row
    (trace,) = heat_map(found, quantities(found)[0])["data"]
    for name, row in zip(cells.names, cells.lines, strict=True):
        place = cells.names.index(name)
        assert [line.name for line in row] == [name, name]
        assert trace["text"][place] == [f"{line.loss:.2g}" for line in row]


def test_half_a_study_is_drawn_too(found):
    half = replace(found, lines=found.lines[3:])
    assert arrange(half).lines[0][0] is None
    draw(half)
    assert f"{len(half.lines)} of {half.planned} so far" in render(half)


def test_shades_are_logarithms_within_the_decades():
    colours, bottom, top = shades([[1.0, 10.0, 1e-9, 0.0, -3.0, math.inf, None]])
    assert (bottom, top) == (-3.0, 1.0)
    assert colours == [[0.0, 1.0, -3.0, -3.0, -3.0, 1.0, None]]
    assert shades([[0.0]])[1:] == (-1.0, 0.0)


def test_numbers_that_are_none_are_drawn(found):
    bad = replace(found, lines=tuple(replace(line, loss=math.inf, divergence=math.inf) for line in found.lines))
    draw(bad)
    assert "inf" in render(bad)


@pytest.mark.parametrize("key", ["task", "checkpoint", "lines", "identity", "baseline"])
def test_a_damaged_file_is_a_sentence(run, tmp_path, key):
    shutil.copy(run / "sensitivity.json", tmp_path)
    content = json.loads((tmp_path / "sensitivity.json").read_text())
    for value in (3, [], {}, None):
        (tmp_path / "sensitivity.json").write_text(json.dumps({**content, key: value}))
        with pytest.raises(QslmError):
            write_sensitivity(tmp_path)


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match="There is no"):
        write_sensitivity(tmp_path)
