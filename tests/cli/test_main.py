import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qslm.cli.options import use_threads

VERBS = (
    "demo", "inspect", "sensitivity", "search", "status", "select", "eval", "energy", "verify", "generate", "bench",
    "train", "data",
)  # fmt: skip


def run(*words, **options):
    command = [sys.executable, "-m", "qslm", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_help_names_every_verb(call):
    result = call("--help")
    assert result.exit_code == 0
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(call, verb):
    words = ("train", "lm") if verb == "train" else (verb,)
    result = call(*words, "--help")
    assert result.exit_code == 0
    assert "qslm " + " ".join(words) in result.stdout
    assert "Example" in result.stdout


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom qslm.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'plotly', 'scipy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 5  # 0.4 s on a free machine; importing torch alone takes longer


def test_version(call):
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("qslm 0.")


@pytest.mark.parametrize("words", [["no-such-verb"], ["inspect", "--no-such-option"], ["generate", "x"]])
def test_usage_errors_end_with_status_2(call, words):
    result = call(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_a_missing_checkpoint_gives_one_message_and_no_traceback(tmp_path):
    done = run("inspect", tmp_path / "none.pth")
    assert done.returncode == 2
    assert done.stderr.startswith("qslm: error: There is no checkpoint")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_full_disk_under_stdout_is_told(checkpoint):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qslm", "inspect", checkpoint, "--binary-embedding", "true"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("qslm: error: No space left on device.")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_has_gone_is_no_error(checkpoint):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "qslm", "inspect", checkpoint, "--binary-embedding", "true", "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == ""


def test_json_is_alone_on_stdout(checkpoint):
    done = run("inspect", checkpoint, "--json", "--binary-embedding", "true")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] > 1000


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_output_will_do(checkpoint, encoding):
    words = (
        "generate",
        checkpoint,
        "--prompt",
        "caf\u00e9 \u2603 \U0001f600",
        "--tokens",
        2,
        "--binary-embedding",
        "true",
    )
    options = {"env": {**os.environ, "PYTHONIOENCODING": encoding}, "encoding": encoding}
    done = run(*words, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caf")
    done = run(*words, "--json", **options)
    assert json.loads(done.stdout)["prompt"] == "caf\u00e9 \u2603 \U0001f600"


def test_more_threads_than_a_machine_bears_are_refused(refused, checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert "Give --threads 8 at most." in refused("generate", checkpoint, "--prompt", "x", "--threads", 9)
    use_threads(8)
    use_threads(None)
    assert asked == [8]
