import hashlib
import json
import re
import shutil

import pytest

from qslm.cli import budget
from qslm.errors import StudyError
from qslm.study import pack, select
from qslm.tasks import named

SURE = ("--binary-embedding", "true")
FAST = ("--precisions", "8 4", "--max-evaluations", 12, "--context", 16, "--windows", 40)


@pytest.fixture(scope="module")
def run(checkpoint, text, tmp_path_factory):
    """The folder of a small finished study, made by the command line."""
    from typer.testing import CliRunner

    from qslm.cli.main import app

    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["search", checkpoint, "--task", "text", "--file", text, "--max-rise", "20%", *SURE, *FAST, "-o", folder]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_search_says_first_what_it_will_do(run):
    told = (run / "stderr").read_text()
    assert re.search(r"at most \d+ evaluations of [\d,]+ tokens, [\d.]+ .+ each, so ", told)
    assert re.search(r"memory: .+ at most, .+ of it for kept activations", told)
    assert re.search(r"expected losses: of \d+ matrices in 2 formats", told)
    assert told.index("at most") < told.index("   1  front")


def test_search_ends_with_the_table_and_the_paths(run):
    shown = (run / "stdout").read_text()
    for word in ("baseline", "selected", "95 % interval", "KiB", "saving", "as the paper counts", "report.html"):
        assert word in shown


def test_search_leaves_the_whole_run_folder(run):
    for name in ("study.json", "ledger.sqlite", "selection.json", "report.html", "command.txt"):
        assert (run / name).stat().st_size > 0
    for name in ("pareto.png", "tiers.png", "bits.png"):
        assert (run / "figures" / name).read_bytes().startswith(b"\x89PNG")
    selection = json.loads((run / "selection.json").read_text())
    assert (run / "artifact" / "model.safetensors").stat().st_size == selection["selected"]["bytes"]


def test_the_answer_is_printed_also_where_the_report_cannot_be_written(run, call, checkpoint, text, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "report.html").unlink()
    (copy / "report.html").mkdir()
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "20%", *SURE, *FAST, "-o", copy)
    result = call(*words)
    assert result.exit_code == 2 and "report.html" in result.stderr
    assert "as the paper counts" in result.stdout


def test_the_same_command_measures_nothing_again(run, call, checkpoint, text):
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "20%", *SURE, *FAST, "-o", run)
    before = (run / "artifact" / "model.safetensors").read_bytes()
    result = call(*words, "--json")
    assert result.exit_code == 0, result.stderr
    again, stored = json.loads(result.stdout), json.loads((run / "selection.json").read_text())
    assert {name: again[name] for name in stored} == stored
    assert (run / "artifact" / "model.safetensors").read_bytes() == before


def test_other_windows_in_the_same_folder_are_named_in_words(run, refused, checkpoint, text):
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "20%", *SURE, *FAST, "-o", run)
    told = refused(*words, "--windows", 41, "--report-windows", 50)
    assert "search windows 40 then, 41 now (--windows)" in told
    assert "report windows all then, 50 now (--report-windows)" in told
    assert "sha256" not in told and "data." not in told


def test_the_packed_model_serves_as_a_checkpoint(run, call, text):
    packed = run / "artifact"
    assert call("verify", packed).exit_code == 0
    assert call("verify", packed / "model.safetensors").stdout == call("verify", packed).stdout
    found = json.loads(call("eval", packed, "--task", "text", "--file", text, "--context", 16, "--json").stdout)
    assert found["bytes"] == (packed / "model.safetensors").stat().st_size
    generated = call("generate", packed, "--prompt", "the", "--tokens", 3)
    assert generated.exit_code == 0, generated.stderr
    assert generated.stdout.startswith("the")
    assert "attention 1" in call("inspect", packed).stdout


def test_select_answers_under_another_budget(run, call):
    stored = json.loads((run / "selection.json").read_text())
    result = call("select", run, "--max-rise", "400%", "--mu", "3", "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["budget"]["prefer"] == "score"
    assert answer["budget"]["mu"] == 3
    assert answer["evaluations"] == stored["evaluations"]
    assert "selected" in call("select", run).stdout


def test_what_select_answers_can_be_packed(run, call, tmp_path):
    unpacked, packed = tmp_path / "run", tmp_path / "packed"
    shutil.copytree(run, unpacked, ignore=shutil.ignore_patterns("selection.json", "artifact"))
    assert "Not packed yet: qslm " in call("select", unpacked, "--max-rise", "400%").stdout
    result = call("select", unpacked, "--max-rise", "400%", "-o", packed, "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["paths"]["model"] == str(packed)
    assert (packed / "model.safetensors").stat().st_size == answer["selected"]["bytes"]
    assert call("verify", packed).exit_code == 0


def test_the_summary_counts_what_selection_json_counts_and_says_that_the_limit_ran_out(run, call):
    stored = json.loads((run / "selection.json").read_text())
    shown = (run / "stdout").read_text()
    assert f"{stored['evaluations']} evaluations, baseline" in shown
    assert (stored["stopped"] == "evaluations") == ("stopped at its --max-evaluations" in shown)


@pytest.mark.parametrize("percent", ["", "-1%", "x%", "0%", "nan%", "1e400%", "%"])
def test_bad_percentages_are_refused(refused, checkpoint, text, tmp_path, percent):
    words = ("search", checkpoint, "--task", "text", "--file", text, "-o", tmp_path / "run", *SURE)
    refused(*words, f"--max-memory={percent}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "no budget"),
        (["--max-memory", "10B"], "nearest possible budget"),
        (["--max-memory", "1%"], "nearest possible budget"),
        (["--max-drop", "2", "--max-rise", "1"], "Both"),
        (["--max-drop", "2"], "--max-rise"),
        (["--max-rise", "much"], "much"),
        (["--max-rise", "1", "--decision", "coin"], "coin"),
        (["--max-rise", "1", "--prefer", "prettiest"], "prettiest"),
        (["--max-rise", "1", "--precisions", "8 9"], "'9'"),
        (["--max-rise", "1", "--precisions", ""], "empty"),
        (["--max-rise", "1", "--activations", ""], "--activations is empty"),
        (["--max-rise", "1", "--activations", "4"], "no layer of the network reads any"),
        (["--max-rise", "1", "--activations", "8 4"], "knapsack does not choose"),
        (["--max-rise", "1", "--order", "random"], "random"),
        (["--max-rise", "1", "--quantizers", "magic"], "magic"),
        (["--max-rise", "1", "--mu", "nan", "--prefer", "score"], "nan"),
        (["--max-rise", "1", "--task", "chess"], "chess"),
        (["--max-rise", "1", "--file", "no-such.txt"], "no-such.txt"),
    ],
)
def test_impossible_requests_are_refused(refused, checkpoint, text, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    words = ("search", checkpoint, "--task", "text", "--file", text, "-o", "run", "--windows", 8, *SURE)
    assert told in refused(*words, *options)
    assert not (tmp_path / "run" / "selection.json").exists()


def test_where_nothing_is_accepted_the_report_is_there(refused, checkpoint, text, tmp_path):
    words = ("search", checkpoint, "--task", "text", "--file", text, *SURE, *FAST, "-o", tmp_path)
    told = refused(*words, "--max-rise", "0", "--precisions", "2", "--max-memory", "30%")
    assert "the closest is" in told
    assert "nothing was selected" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("place", ["own.txt", "own.txt/below/it", "/proc/none", "x" * 300])
def test_a_run_folder_that_cannot_be_is_refused_before_loading(refused, checkpoint, text, monkeypatch, place):
    monkeypatch.chdir(text.parent)
    monkeypatch.setattr("qslm.loading.outline.read_outline", None)
    told = refused("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "1", "-o", place)
    assert f"The folder {place} cannot be written: " in told and "Choose a folder that can be written." in told
    assert f"{place} cannot be written" in refused("train", "lm", "-o", place)


@pytest.mark.parametrize("verb", ["search", "sensitivity", "demo"])
def test_a_run_folder_with_a_model_or_without_a_name_is_refused(refused, run, checkpoint, text, monkeypatch, verb):
    monkeypatch.setattr("qslm.loading.checkpoint.load_checkpoint", None)
    monkeypatch.setattr("qslm.loading.outline.read_outline", None)
    words = (checkpoint, "--task", "text", "--file", text) if verb != "demo" else ()
    words += ("--max-rise", "1") if verb == "search" else ()
    before = sorted(checkpoint.iterdir()), sorted((run / "artifact").iterdir())
    told = refused(verb, *words, "-o", checkpoint)
    assert f"{checkpoint} is the folder of a checkpoint, model.pth" in told and "Name another folder" in told
    assert "artifact is the folder of a packed model" in refused(verb, *words, "-o", run / "artifact")
    assert "The name of the output folder is empty" in refused(verb, *words, "-o", "")
    assert before == (sorted(checkpoint.iterdir()), sorted((run / "artifact").iterdir()))


def test_a_training_and_a_study_keep_out_of_each_others_folders(refused, call, run, checkpoint, text, tmp_path):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for kind in ("lm", "classifier"):
        assert f"{run} is the run folder of a study" in refused("train", kind, "-o", run)
        assert "artifact is the folder of a packed model" in refused("train", kind, "-o", run / "artifact")
        assert "The name of the output folder is empty" in refused("train", kind, "-o", "")
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert call("inspect", run / "artifact").exit_code == 0
    (tmp_path / "training.pt").write_bytes(b"state")
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "1")
    assert f"{tmp_path} is the folder of a training" in refused(*words, "-o", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["training.pt"]


def test_a_folder_that_is_another_ones_is_not_packed_into(refused, run, checkpoint, tmp_path):
    words = ("select", run, "--max-rise", "400%")
    assert "is the run folder of a study" in refused(*words, "-o", run)
    assert "is the folder of a checkpoint, model.pth" in refused(*words, "-o", checkpoint)
    packed = shutil.copytree(run / "artifact", tmp_path / "packed")
    selection = select(run, max_rise="400%")
    for source in (packed, packed / "model.safetensors"):
        with pytest.raises(StudyError, match="is the folder of the checkpoint that is packed"):
            pack(selection, packed, source)
    model = packed / "model.safetensors"
    model.write_bytes(model.read_bytes() + b"damage")
    digest = pack(selection, packed, checkpoint)  # a packed model is replaced, but not by itself
    assert hashlib.sha256(model.read_bytes()).hexdigest() == digest
    (tmp_path / "other.bin").write_bytes(b"weights")
    assert "is the folder of a checkpoint, other.bin" in refused(*words, "-o", tmp_path)
    assert "empty" in refused(*words, "-o", "")


def test_the_demo_looks_at_its_folder_first(refused, text, monkeypatch):
    monkeypatch.setattr("qslm.study.demo", None)
    assert "cannot be written" in refused("demo", "-o", text)


def test_the_answer_tells_the_formats_of_all_weights(run, call):
    sites = json.loads((run / "selection.json").read_text())["selected"]["allocation"]["sites"]
    for shown in ((run / "stdout").read_text(), call("select", run).stdout, call("status", run).stdout):
        (line,) = (line for line in shown.splitlines() if "formats" in line)
        assert set(re.findall(r"(\S+) [\d.e-]+ %", line)) == set(sites.values())
        assert sum(map(float, re.findall(r"([\d.e-]+) %", line))) == pytest.approx(100, abs=0.5)


def test_looking_for_a_run_folder_leaves_nothing(refused, checkpoint, text, tmp_path):
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-memory", "10B")
    refused(*words, "-o", tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []


def test_select_needs_a_study(refused, tmp_path):
    assert "study.json" in refused("select", tmp_path, "--max-memory", "1MB")


def test_an_impossible_budget_is_refused_before_the_weights_are_looked_at(refused, checkpoint, text, monkeypatch):
    monkeypatch.setattr("qslm.loading.checkpoint.load_checkpoint", None)
    words = ("search", checkpoint, "--task", "text", "--file", text, "-o", "run", "--max-memory", "2000B")
    told = refused(*words)
    exact = re.search(r"--max-memory (\d+)B", told)
    assert exact and int(exact[1]) > 2000 and "kB" in told


def test_the_budget_that_the_refusal_names_is_possible(refused, call, checkpoint, text, tmp_path):
    words = (
        "search",
        checkpoint,
        "--task",
        "text",
        "--file",
        text,
        *SURE,
        *FAST,
        "--max-evaluations",
        1,
        "-o",
        tmp_path / "run",
    )
    nearest = re.search(r"--max-memory (\d+B)", refused(*words, "--max-memory", "1B"))[1]
    result = call(*words, "--max-memory", nearest, "--precisions", "4", "--max-rise", "10000%", "--json")
    assert result.exit_code == 0, result.stderr
    # The header names what is stored by columns, which is not known before the network has run.
    assert 0 <= int(nearest.removesuffix("B")) - json.loads(result.stdout)["selected"]["bytes"] <= 128


def test_the_tasks_that_are_known_before_loading_are_all_tasks(refused):
    assert set(budget.TASKS) == set(named.NAMES)
    told = refused("search", "spikegpt-mini", "--task", "acuracy", "--max-drop", "2", "-o", "run")
    assert "There is no task 'acuracy'" in told and "labelled" in told


def test_a_limit_of_the_other_kind_is_refused_before_loading(refused, checkpoint, classifier, text, table, monkeypatch):
    monkeypatch.setattr("qslm.loading.outline.read_outline", None)
    told = refused("search", classifier, "--task", "labelled", "--file", table, "--max-rise", "2", "-o", "run")
    assert "--max-drop" in told
    told = refused("search", checkpoint, "--task", "text", "--file", text, "--max-drop", "2", "-o", "run")
    assert "--max-rise" in told


def test_memory_alone_on_a_classifier_tells_losses_in_points(call, classifier, table, tmp_path):
    words = ("search", classifier, "--task", "labelled", "--file", table, "--max-memory", "50%", *SURE)
    result = call(*words, "--precisions", "8", "--max-evaluations", 1, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "points" in result.stdout and "no limit" in result.stdout


def test_giving_mu_asks_for_the_score(run, call):
    for words, prefer in ((["--mu", "0"], "score"), (["--mu", "3", "--prefer", "smallest"], "smallest")):
        result = call("select", run, "--max-rise", "400%", *words, "--json")
        assert json.loads(result.stdout)["budget"]["prefer"] == prefer


def test_status_says_where_a_study_stands(run, call, refused, tmp_path):
    stored = json.loads((run / "selection.json").read_text())
    shown = call("status", run)
    assert shown.exit_code == 0, shown.stderr
    for word in ("knapsack", "finished", "of at most", "best so far", "on the search split", "0 s left"):
        assert word in shown.stdout
    found = json.loads(call("status", run, "--json").stdout)
    assert found["best"]["selected"]["key"] == stored["selected"]["key"] and found["state"] == "finished"
    assert found["evaluations"] <= found["maximum_evaluations"] and found["seconds_left"] == 0
    assert "study.json" in refused("status", tmp_path)


def test_select_says_what_it_leaves_open(run, call, monkeypatch):
    from dataclasses import replace

    from qslm import study
    from qslm.study import Foretold

    found = replace(study.select(run), undecided=2, foretold=Foretold("k" * 64, "3.10 bits a weight", 12_000))
    monkeypatch.setattr("qslm.study.select", lambda *words, **more: found)
    shown = call("select", run).stdout
    assert "foretold to keep the budget: 3.10 bits a weight, 12.00 kB" in shown
    assert "2 evaluations that ended early are undecided under this budget: search again decides them." in shown
    content = json.loads(call("select", run, "--json").stdout)
    assert content["undecided"] == 2 and content["foretold"]["bytes"] == 12_000


def test_a_search_by_workers_and_by_another_strategy(run, call, checkpoint, text, tmp_path):
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "20%", *SURE, *FAST)
    result = call(*words, "--workers", 2, "-o", tmp_path / "workers", "--json")
    assert result.exit_code == 0, result.stderr
    found, stored = json.loads(result.stdout), json.loads((run / "selection.json").read_text())
    differ = {name for name in stored if found[name] != stored[name]}
    assert differ <= {"seconds"}
    result = call(*words, "--strategy", "tiered", "--whole", "--max-seconds", 3600, "-o", tmp_path / "tiered")
    assert result.exit_code == 0, result.stderr
    assert "whole network at int8-row" in result.stderr and "foretold" not in result.stderr
