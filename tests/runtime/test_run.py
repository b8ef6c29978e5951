"""qslm-run, the engine as a program of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks.packing import pack

from qslm.loading.checkpoint import load_checkpoint
from qslm.runtime import Engine, generate

PROGRAM = Path(sys.executable).with_name("qslm-run")
PROMPT = "The river runs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped model in 4 bits."""
    checkpoint = load_checkpoint("spikegpt-mini")
    return pack(checkpoint.model, tmp_path_factory.mktemp("run"), tokenizer_json=checkpoint.tokenizer.to_str())


def run(*words, **more):
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60, **more)


@pytest.mark.parametrize("settings", [(0.0, 1.0, 0), (0.8, 0.95, 7)])
def test_it_goes_on_as_the_engine_does(folder, settings):
    temperature, top_p, seed = settings
    words = ("--tokens", 40, "--temperature", temperature, "--top-p", top_p, "--seed", seed)
    done = run(folder, "--prompt", PROMPT, *words, "--stats")
    assert done.returncode == 0, done.stderr
    given = {"tokens": 40, "temperature": temperature, "top_p": top_p, "seed": seed}
    assert done.stdout == generate(Engine(folder), folder / "tokenizer.json", PROMPT, **given) + "\n"
    for word in ("loaded in", "40 tokens", "resident at most"):
        assert word in done.stderr


def test_help_and_options_that_are_none():
    done = run("model", "--help")
    assert done.returncode == 0 and "--top-p X" in done.stdout and not done.stderr
    for words, told in [
        (("--tokens", "1.9"), "--tokens is 1.9, and must be a whole number of 0 to 1,000,000,000"),
        (("--tokens", "-1"), "--tokens is -1"),
        (("--seed", "99999999999999999999999"), "of 0 to 2^64 - 1"),
        (("--threads", "0"), "of 1 to 1,024"),
        (("--top-p", "0"), "--top-p is 0"),
        (("--temperature", "nan"), "--temperature is nan"),
        (("--prompt",), "--prompt wants a value"),
        (("-t", "5"), "no option -t"),
        (("other",), "two folders"),
    ]:
        done = run("model", *words)
        assert done.returncode == 2 and told in done.stderr and not done.stdout, words


def test_what_cannot_be_read_or_written_is_said(folder, tmp_path):
    done = run(tmp_path / "none")
    assert done.returncode == 1 and str(tmp_path / "none") in done.stderr
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([PROGRAM, folder, "--tokens", "3"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "cannot be written" in done.stderr


def altered(folder, tmp_path, change):
    """The folder with another model file."""
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    content = bytearray((folder / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(change(content))
    return tmp_path


def no_number(content):
    """Every scale of a matrix NaN."""
    length = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + length])["blocks.0.att.key.weight.scales"]["data_offsets"]
    content[8 + length + begin : 8 + length + end] = np.full((end - begin) // 2, np.nan, np.float16).tobytes()
    return content


def test_a_file_that_is_not_fit_is_refused_with_what_is_wrong(folder, tmp_path):
    done = run(altered(folder, tmp_path, no_number), "--tokens", 3)
    assert done.returncode == 1 and "blocks.0.att.key.weight has a scale that is not positive" in done.stderr
    for size in (0, 4, 2000, 100_000):
        done = run(altered(folder, tmp_path, lambda content, size=size: content[:size]), "--tokens", 3)
        assert done.returncode == 1 and len(done.stderr) > 20 and not done.stdout
    assert "The file ends within" in done.stderr
