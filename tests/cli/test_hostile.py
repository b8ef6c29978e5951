"""What users get wrong, and what others do to their files: status 2, one message, no traceback, nothing written."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from qslm.study import demonstration

SURE = ("--binary-embedding", "true")


@pytest.fixture
def eval_text(refused, checkpoint):
    def run(path, *options):
        return refused("eval", checkpoint, "--task", "text", "--file", path, *SURE, *options)

    return run


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "no text"), (b" \n\t\n", "no text"), (b"caf\xe9 au lait", "UTF-8"), (b"t", "has 1 tokens")],
)
def test_unusable_texts(eval_text, tmp_path, content, told):
    (tmp_path / "own.txt").write_bytes(content)
    assert told in eval_text(tmp_path / "own.txt")


def test_a_folder_is_no_text(eval_text, tmp_path):
    assert str(tmp_path) in eval_text(tmp_path)


def test_a_split_that_is_not_there(eval_text, text):
    assert "calibrate" in eval_text(text, "--split", "calibrate")


@pytest.mark.parametrize("line", ["fine\t2", "fine\tgood", "fine\t-1", "no tab here"])
def test_labels_outside_the_classes(refused, classifier, tmp_path, line):
    (tmp_path / "own.tsv").write_text(f"good\t1\nbad\t0\n{line}\n")
    told = refused("eval", classifier, "--task", "labelled", "--file", tmp_path / "own.tsv", *SURE)
    assert "line 3" in told


def test_a_tokenizer_of_another_vocabulary(refused, checkpoint, text, tmp_path, monkeypatch):
    from qslm.data.tokenizer import train_tokenizer

    train_tokenizer(text.read_text().splitlines(keepends=True) + ["zebra quagga gnu\n"] * 50, 340).save(
        str(tmp_path / "other.json")
    )
    content = json.loads((tmp_path / "other.json").read_text())
    assert len(content["model"]["vocab"]) > 300
    # It is refused before the checkpoint is loaded, so before any calibration text.
    monkeypatch.setattr("qslm.loading.checkpoint.load_checkpoint", None)
    largest = max(content["model"]["vocab"].values())
    words = ("--task", "text", "--file", text)
    for verb, more in (
        ("eval", words),
        ("search", (*words, "--max-rise", "5%", "-o", tmp_path / "run")),
        ("inspect", ()),
        ("generate", ("--prompt", "the")),
    ):
        told = refused(verb, checkpoint, *more, "--tokenizer", tmp_path / "other.json")
        assert f"gives the id {largest:,}, but the model's vocabulary has 300 tokens" in told


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(refused, checkpoint, tmp_path, value):
    state = torch.load(checkpoint / "model.pth", weights_only=True)
    state["blocks.0.att.key.weight"][0, 0] = value
    torch.save(state, tmp_path / "bad.pth")
    assert "blocks.0.att.key.weight" in refused("inspect", tmp_path / "bad.pth", *SURE)


def test_a_checkpoint_that_is_no_network(refused, tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "bad.pth")
    assert "bad.pth" in refused("inspect", tmp_path / "bad.pth", *SURE)
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    assert "bad.safetensors" in refused("inspect", tmp_path / "bad.safetensors", *SURE)


def test_an_altered_packed_model(refused, call, checkpoint, text, tmp_path):
    run = tmp_path / "run"
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "500%", *SURE)
    assert call(*words, "--windows", 10, "--precisions", "8", "--max-evaluations", 1, "-o", run).exit_code == 0
    packed = run / "artifact" / "model.safetensors"
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    for words in (["verify"], ["inspect"], ["generate", "--prompt", "x"]):
        assert "model.safetensors" in refused(words[0], run / "artifact", *words[1:])
    packed.write_bytes(content[:-100])
    assert "model.safetensors" in refused("verify", run / "artifact")


def test_a_folder_that_cannot_be_written(refused, checkpoint, text):
    words = ("search", checkpoint, "--task", "text", "--file", text, "--max-rise", "5%", "--windows", 10, *SURE)
    assert "/proc/none" in refused(*words, "-o", "/proc/none/run")


def test_interrupted_work_says_how_to_go_on(checkpoint, text, tmp_path):
    long = tmp_path / "long.txt"  # so long that no machine is done before the signal comes
    long.write_text(text.read_text() * 20)
    words = ["search", checkpoint, "--task", "text", "--file", long, "--max-rise", "5%", *SURE, "-o", tmp_path / "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qslm", *map(str, words), "--context", "8"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Work that a shell starts in the background ignores the interrupt, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("baseline:"):
            break
    process.send_signal(signal.SIGINT)
    shown, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "qslm: stopped; the same command goes on where it was"
    assert "Traceback" not in told
    assert shown == ""


def test_the_demo_ends_with_the_table_and_two_sentences(call, checkpoint, tmp_path, monkeypatch):
    windows = {"SEARCH_WINDOWS": 4, "REPORT_WINDOWS": 16}
    for name, value in {"CHECKPOINT": str(checkpoint), "MAX_MEMORY": "90%", "MAX_RISE": 5.0, **windows}.items():
        monkeypatch.setattr(demonstration, name, value)
    text = "the river runs slowly past a small town\n" * 800
    for split in ("train", "valid", "test"):
        path = tmp_path / "wikitext-2" / f"wiki.{split}.tokens"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    state = torch.load(checkpoint / "model.pth", weights_only=True)
    assert state["emb.weight"].shape == (300, 16)
    result = call("demo", "-o", tmp_path / "run", "--data", tmp_path)
    assert result.exit_code == 0, result.stderr
    for word in ("selected", "report.html", "before   The river", "after    The river"):
        assert word in result.stdout
    assert (tmp_path / "run" / "report.html").is_file()
