"""The verbs on a classifier of the BERT type: a folder of `transformers`, what is packed of it, and opened again."""

import json

import pytest
import torch
from networks.bert import save, sentences
from typer.testing import CliRunner

from qslm.cli.main import app
from qslm.data.files import LabelledText
from qslm.data.source import Source
from qslm.data.sst2 import LABELS, LabelledCorpus
from qslm.evaluation import evaluate
from qslm.loading.checkpoint import load_checkpoint
from qslm.tasks import make_task

pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save(folder, labels=("NEGATIVE", "POSITIVE"))
    return folder


def answered(bert, count, seed):
    """Sentences with what the network itself answers; every tenth label is the other one."""
    texts = sentences(count, longest=24, seed=seed)
    opened = load_checkpoint(bert)
    labels = []
    for place, text in enumerate(texts):
        with torch.inference_mode():
            answer = int(opened.model(torch.tensor([opened.tokenizer.encode(text).ids])).argmax())
        labels.append(answer if place % 10 else 1 - answer)
    assert 0.1 < sum(labels) / count < 0.9
    return LabelledText(texts, tuple(labels))


@pytest.fixture(scope="module")
def corpus(bert):
    splits = (answered(bert, count, seed) for seed, count in enumerate((300, 200, 200)))
    return LabelledCorpus(*splits, LABELS, {}, Source("SST-2", "here"))


@pytest.fixture(autouse=True)
def sst2(corpus, monkeypatch):
    monkeypatch.setattr("qslm.tasks.named.load_sst2", lambda *_: corpus)


def test_inspect_shows_blocks_and_modules(bert, call):
    result = call("inspect", bert, "--json")
    assert result.exit_code == 0, result.stderr
    blocks = {one["block"]: one for one in json.loads(result.stdout)["blocks"]}
    assert list(blocks) == ["input", "attention 0", "attention 1", "output"]
    modules = [one["module"] for one in blocks["attention 0"]["modules"]]
    assert "attention.self.query" in modules and "output.dense" in modules


def test_eval_measures_it_on_sst2_and_on_a_table(bert, call, tmp_path, corpus):
    result = call("eval", bert, "--task", "sst2", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["value"] == 0.9 and json.loads(result.stdout)["samples"] == 200
    table = tmp_path / "own.tsv"
    rows = zip(corpus.report.sentences, corpus.report.labels, strict=True)
    table.write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    result = call("eval", bert, "--task", "labelled", "--file", table, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["value"] == 0.9


@pytest.fixture(scope="module")
def study(bert, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bert"
    words = ("search", bert, "--task", "sst2", "--max-drop", 12, "--precisions", "8 4", "--max-evaluations", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qslm.tasks.named.load_sst2", lambda *_: corpus)
        result = CliRunner().invoke(app, [str(word) for word in (*words, "-o", folder)])
    assert result.exit_code == 0, result.stderr
    return folder


def test_a_search_packs_what_it_measured(study, bert):
    selection = json.loads((study / "selection.json").read_text())["selected"]
    packed, whole = load_checkpoint(study / "artifact"), load_checkpoint(bert)
    assert packed.file_bytes == selection["bytes"] < 0.7 * whole.file_bytes
    task = make_task("sst2", tokenizer=packed.tokenizer, config=packed.config)
    assert evaluate(packed.model, task, "report").value == pytest.approx(selection["value"], abs=1e-12)


def test_a_spiking_one_is_packed_and_answers_as_it_was_measured(bert, call, tmp_path):
    words = ("spike", bert, "-o", tmp_path / "packed", "--task", "sst2", "--windows", 100, "--json")
    result = call(*words)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["layers"]) == 12 and 4 < found["activation_bits"] < 16
    result = call("eval", tmp_path / "packed", "--task", "sst2", "--split", "search", "--windows", 100, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["value"] == found["spikes"]
    assert found["float32"] == 0.8  # every second sentence, all wrong ones among them


def test_energy_takes_the_task_that_suits_it(bert, call):
    result = call("energy", bert, "--tokens", 200, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["task"] == "sst2" and found["not_counted"] == [] and found["tokens"] >= 200


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("eval", "--task", "sst2", "--context", 33), "longer than the model's table of 32 positions"),
        (("eval", "--task", "wikitext2"), "needs a language model"),
        (("generate", "--prompt", "the"), "A classifier does not generate text"),
        (("spike", "--task", "sst2", "--rotate", "-o", "packed"), "No rotation folds into EncoderLogits"),
    ],
)
def test_what_it_cannot_do_is_refused(words, told, bert, refused):
    assert told in refused(words[0], bert, *words[1:])
