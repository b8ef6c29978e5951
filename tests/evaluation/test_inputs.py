"""What matrices see: against a naive sum, in a file and out of it."""

import numpy as np
import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt, skewed_spikegpt
from networks.tied import TiedNetwork
from torch import nn

from qslm.anatomy.find import find_anatomy
from qslm.errors import ArtifactError
from qslm.evaluation import inputs as module
from qslm.evaluation.inputs import StoredInputs, collect_inputs, write_inputs
from qslm.quantizers import InputStatistics
from qslm.tasks.task import Losses, Task


class Batches(Task):
    name = "batches"

    def __init__(self, batches):
        self.found = batches

    def batches(self, split):
        return self.found

    def losses(self, model, batch):
        with torch.inference_mode():
            model(batch)
        return Losses(np.ones(len(batch)), np.ones(len(batch)), batch.numel())


@pytest.fixture
def model():
    return random_spikegpt()


@pytest.fixture
def skewed():
    return skewed_spikegpt()


@pytest.fixture
def task(model):
    return Batches([random_ids(model, 3, 16, seed=seed) for seed in range(4)])


def test_they_are_the_means_of_what_each_matrix_is_multiplied_with(model, task):
    found = collect_inputs(model, find_anatomy(model), task)
    layers = {f"{path}.weight": layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert set(found) == set(layers)
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda _, given, __, name=name: seen.setdefault(name, []).append(given[0].double()))
        for name, layer in layers.items()
    ]
    for batch in task.found:
        model(batch)
    for hook in hooks:
        hook.remove()
    for name, parts in seen.items():
        rows = torch.cat([part.flatten(0, -2) for part in parts])
        assert found[name].count == len(rows) == 4 * 3 * 16
        torch.testing.assert_close(found[name].moment.double(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)


def test_feed_forward_values_see_squares_and_keys_mixed_tokens(model, task):
    """The inputs that each matrix really sees, not the residual stream."""
    found = collect_inputs(model, find_anatomy(model), task)
    assert float(found["blocks.0.ffn.value.weight"].moment.min()) >= 0
    mixed = [found[f"blocks.0.att.{name}.weight"].moment for name in ("key", "value", "receptance")]
    assert not torch.equal(mixed[0], mixed[1]) and not torch.equal(mixed[1], mixed[2])


def test_the_text_is_bounded_and_the_same_every_time(model, task, monkeypatch):
    monkeypatch.setattr(module, "TOKENS", 50)
    once, again = (collect_inputs(model, find_anatomy(model), task) for _ in range(2))
    assert {one.count for one in once.values()} == {96}  # two batches
    assert all(torch.equal(once[name].moment, again[name].moment) for name in once)


def test_a_tied_matrix_sees_what_both_of_its_layers_see():
    model = TiedNetwork()
    found = collect_inputs(model, find_anatomy(model), Batches([torch.arange(12).reshape(2, 6)]))
    assert set(found) <= {site.name for site in find_anatomy(model).sites}


def test_they_come_back_from_a_file_and_a_damaged_one_is_refused(model, task, tmp_path):
    found, path = collect_inputs(model, find_anatomy(model), task), tmp_path / "inputs.safetensors"
    assert write_inputs(path, found, "this text") == write_inputs(tmp_path / "again", found, "this text")
    stored = StoredInputs(path)
    assert stored.meaning == "this text" and set(stored) == set(found) and len(stored) == len(found)
    for name, one in found.items():
        assert torch.equal(stored[name].moment, one.moment) and stored[name].count == one.count
    assert "other" not in stored
    content = path.read_bytes()
    for length in (0, 7, 30, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"inputs\.safetensors"):
            dict(StoredInputs(path))


def test_readers_of_unlike_channels_share_exponents_that_follow_the_inputs(skewed, task):
    found = collect_inputs(skewed, find_anatomy(skewed), task)
    key, value = (found[f"blocks.0.att.{name}.weight"].exponents for name in ("key", "value"))
    assert torch.equal(key, value) and int(key.max()) == 0 and int(key.min()) < -2
    channels = skewed.blocks[0].ln1.weight.abs()
    assert key.float()[channels > channels.median()].mean() > key.float()[channels < channels.median()].mean()


def test_exponents_come_back_from_a_file(skewed, task, tmp_path):
    found, path = collect_inputs(skewed, find_anatomy(skewed), task), tmp_path / "inputs.safetensors"
    found |= {"plain": InputStatistics(torch.eye(3), 1)}
    write_inputs(path, found, "this text")
    stored = StoredInputs(path)
    assert stored["plain"].exponents is None
    scaled = {name: one.exponents for name, one in found.items() if one.exponents is not None}
    assert len(scaled) > 3 and all(torch.equal(stored[name].exponents, one) for name, one in scaled.items())


def test_networks_without_folds_have_no_exponents(task):
    model = TiedNetwork()
    found = collect_inputs(model, find_anatomy(model), Batches([torch.arange(12).reshape(2, 6)]))
    assert found and all(one.exponents is None for one in found.values())
