import json
import re

import pytest

SURE = ("--binary-embedding", "true")


@pytest.fixture(scope="module")
def words(checkpoint, text):
    return ("sensitivity", checkpoint, "--task", "text", "--file", text, *SURE, "--context", 16, "--windows", 20)


@pytest.fixture(scope="module")
def run(words, tmp_path_factory):
    from typer.testing import CliRunner

    from qslm.cli.main import app

    folder = tmp_path_factory.mktemp("runs") / "parts"
    asked = [*words, "--widths", "4,2", "--level", "block", "-o", folder]
    result = CliRunner().invoke(app, [str(word) for word in asked])
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_the_terminal_shows_the_ranking(run):
    shown = (run / "stdout").read_text()
    for word in ("all attention blocks", "attention 1", "output", "int2-row", "95 % interval", "KL (nats)", "flipped"):
        assert word in shown
    assert "20 windows of the search split" in shown and "the mean over 320 rows" in shown
    assert re.search(r"finds these evaluations with --windows 20\b.*\.$", shown, re.M)
    told = (run / "stderr").read_text()
    assert "8 evaluations of about" in told and "minutes" in told


def test_the_folder_has_the_report_and_the_figures(run):
    assert (run / "figures" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "sensitivity.html").read_text()
    assert "Membrane drift" in page and "all attention blocks" in page


def test_json_has_every_line_and_the_same_command_measures_nothing(run, words, call):
    before = (run / "ledger.sqlite").read_bytes()
    result = call(*words, "--widths", "4,2", "--level", "block", "-o", run, "--json")
    assert result.exit_code == 0, result.stderr
    assert "evaluations" not in result.stderr and (run / "ledger.sqlite").read_bytes() == before
    content = json.loads(result.stdout)
    assert len(content["lines"]) == content["planned"] == 8
    assert {line["width"] for line in content["lines"]} == {4, 2}
    assert content["task"]["units"] == 20 and content["options"]["level"] == "block"
    assert all(len(line["layers"]) == 4 for line in content["lines"])


def test_a_search_of_the_folder_is_the_same_study(run, call, checkpoint, text):
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "900%", *SURE, "--context", 16)
    result = call(*words, "--windows", 20, "--precisions", "4", "-o", run)
    assert result.exit_code == 0, result.stderr


def test_sentences_are_all_measured(call, classifier, table, tmp_path):
    words = ("sensitivity", classifier, "--task", "labelled", "--file", table, *SURE, "--widths", "2", "-o", tmp_path)
    result = call(*words, "--level", "module", "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["kind"] == "points" and content["task"]["units"] == 20
    assert {line["rows"] for line in content["lines"]} == {20}


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (("--widths", "9"), "--widths '9': '9' is no bit width"),
        (("--widths", ""), "--widths is empty"),
        (("--level", "row"), "There is no level 'row'"),
        (("--windows", "1"), "--windows '1' is no number of windows"),
        (("--windows", "many"), "--windows 'many' is no number of windows"),
        (("--quantizer", "none"), "There is no quantizer 'none'"),
        (("--group", "7"), "--group 7 is not known"),
        (("--group", "32-s9"), "--group 32-s9 is not known"),
        (("--group", "tensor-s8"), "A single scale per tensor gains nothing from 8 bits"),
    ],
)
def test_what_is_not_known_is_refused(refused, words, tmp_path, extra, told):
    assert told in refused(*words, "--level", "block", *extra, "-o", tmp_path / "run")
    assert not (tmp_path / "run" / "ledger.sqlite").exists()


def test_other_windows_are_another_study(refused, words, run):
    told = refused(*words, "--windows", "all", "--widths", "2", "-o", run)
    assert "belongs to another study" in told and "search" in told
