"""The network against the published one, and against a naive reading of its equations in numpy."""

import numpy as np
import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt

from qslm.errors import CheckpointError, TaskError
from qslm.loading.checkpoint import load_model
from qslm.models.config import SpikeGPTConfig
from qslm.models.neurons import SpikeTrace
from qslm.models.spikegpt import SpikeGPT

# (vocabulary, width, layers, ffn_width, batch, tokens)
SHAPES = [
    (2, 1, 1, 1, 1, 1),
    (5, 3, 2, 7, 3, 9),
    (11, 17, 3, 20, 1, 1),
    (7, 33, 1, 100, 3, 14),
    (97, 64, 2, 256, 1, 12),
    (13, 65, 4, 31, 3, 8),
    (29, 70, 3, 280, 1, 20),
]


class NaiveSpikeGPT:
    """The published equations in float64, one sequence and one token at a time, with nothing stabilized."""

    def __init__(self, model):
        self.weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        self.config = model.config

    def __getitem__(self, name):
        return self.weights[name]

    def norm(self, x, name):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-5) * self[f"{name}.weight"] + self[f"{name}.bias"]

    def mixed(self, x, name):  # x (tokens, width)
        share = self[name].reshape(-1)
        before = np.vstack([np.zeros_like(x[:1]), x[:-1]])
        return x * share + before * (1 - share)

    def wkv(self, k, v, block):
        w, u = -np.exp(self[f"{block}.att.time_decay"]), self[f"{block}.att.time_first"]
        out = np.empty_like(k)
        for t in range(len(k)):
            numerator, denominator = np.exp(u + k[t]) * v[t], np.exp(u + k[t])
            for i in range(t):
                share = np.exp((t - 1 - i) * w + k[i])
                numerator, denominator = numerator + share * v[i], denominator + share
            out[t] = numerator / denominator
        return out

    def time_mixing(self, x, block):
        k = self.mixed(x, f"{block}.att.time_mix_k") @ self[f"{block}.att.key.weight"].T
        v = self.mixed(x, f"{block}.att.time_mix_v") @ self[f"{block}.att.value.weight"].T
        r = self.mixed(x, f"{block}.att.time_mix_r") @ self[f"{block}.att.receptance.weight"].T
        return (self.wkv(k, v, block) / (1 + np.exp(-r))) @ self[f"{block}.att.output.weight"].T

    def channel_mixing(self, x, block):
        k = self.mixed(x, f"{block}.ffn.time_mix_k") @ self[f"{block}.ffn.key.weight"].T
        r = self.mixed(x, f"{block}.ffn.time_mix_r") @ self[f"{block}.ffn.receptance.weight"].T
        return (np.maximum(k, 0) ** 2 @ self[f"{block}.ffn.value.weight"].T) / (1 + np.exp(-r))

    @staticmethod
    def lif(x):
        v, spikes = np.zeros_like(x[0]), np.empty_like(x)
        for t in range(len(x)):
            h = v + (x[t] - v) / 2
            spikes[t] = h >= 1
            v = np.where(h >= 1, 0, h)
        return spikes

    def logits(self, ids):  # ids (tokens,)
        x = self["emb.weight"][ids]
        if self.config.binary_embedding:
            x = (x >= 0).astype(np.float64)
        x = self.norm(x, "blocks.0.ln0")
        for i in range(self.config.layers):
            block = f"blocks.{i}"
            x = x + self.lif(self.time_mixing(self.norm(x, f"{block}.ln1"), block))
            x = x + self.lif(self.channel_mixing(self.norm(x, f"{block}.ln2"), block))
        x = self.norm(x, "ln_out")
        if self.config.classes is None:
            return x @ self["head.weight"].T
        return x.mean(0) @ self["classifier.weight"].T


def test_upstream_fixture_is_matched(data_folder):
    folder = data_folder.parent / "fixtures" / "spikegpt-upstream"
    expected = np.load(folder / "spikegpt-d48-l3.npz")
    model = load_model(folder / "spikegpt-d48-l3.pth")
    assert isinstance(model, SpikeGPT) and not model.training
    logits = model(torch.from_numpy(expected["ids"]))
    assert logits.shape == expected["logits"].shape and logits.dtype == torch.float32
    np.testing.assert_allclose(logits.numpy(), expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "real"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_are_those_of_the_equations(shape, binary):
    vocabulary, width, layers, ffn_width, batch, tokens = shape
    model = random_spikegpt(vocabulary, width, layers, ffn_width, binary=binary, seed=width, dtype=torch.float64)
    ids = random_ids(model, batch, tokens)
    logits = model(ids)
    assert logits.shape == (batch, tokens, vocabulary)
    naive = NaiveSpikeGPT(model)
    np.testing.assert_allclose(logits.numpy(), [naive.logits(row) for row in ids.numpy()], rtol=0, atol=1e-9)


def test_the_random_networks_fire():
    model = random_spikegpt(29, 70, 3, 280)
    trace = SpikeTrace()
    model(random_ids(model, 2, 20), trace=trace)
    rates = [float(spikes.mean()) for spikes in trace.spikes]
    assert len(rates) == 6 and all(0.02 < rate < 0.6 for rate in rates)


def test_classifier_ignores_padding():
    model = random_spikegpt(13, 19, 2, 23, classes=3, dtype=torch.float64)
    naive = NaiveSpikeGPT(model)
    sentences = [random_ids(model, 1, tokens, seed=tokens)[0] for tokens in (1, 4, 9)]
    longest = 12
    for padding in (0, 5):
        ids = torch.full((3, longest), padding)
        mask = torch.zeros(3, longest, dtype=torch.bool)
        for row, sentence in enumerate(sentences):
            ids[row, : len(sentence)] = sentence
            mask[row, : len(sentence)] = True
        logits = model(ids, mask).numpy()
        np.testing.assert_allclose(logits, [naive.logits(s.numpy()) for s in sentences], rtol=0, atol=1e-9)


def test_classifier_of_a_sentence_without_tokens_is_finite():
    model = random_spikegpt(classes=2)
    logits = model(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.bool))
    assert torch.equal(logits, torch.zeros(1, 2))


def test_embedding_is_binarized_and_minus_zero_fires():
    model = random_spikegpt(vocabulary=3, width=4)
    model.emb.weight[0] = torch.tensor([-0.0, 0.0, 1e-30, -1e-30])
    assert model.emb(torch.tensor([[0]])).tolist() == [[[1.0, 1.0, 1.0, 0.0]]]


def test_classifier_does_not_predict_tokens():
    model = random_spikegpt(classes=2)
    with pytest.raises(CheckpointError, match="classifier"):
        model.step(torch.tensor([0]), model.initial_state(1))


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (torch.zeros(1, 0, dtype=torch.long), "shape"),
        (torch.zeros(0, 4, dtype=torch.long), "shape"),
        (torch.zeros(4, dtype=torch.long), "shape"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "shape"),
        (torch.zeros(1, 4), "float32"),
        (torch.zeros(1, 4, dtype=torch.bool), "bool"),
        (torch.tensor([[0, 31]]), "from 0 to 31, but the model's vocabulary has 31"),
        (torch.tensor([[2, -1]]), "from -1 to 2"),
    ],
    ids=str,
)
def test_ids_that_are_no_tokens_are_refused(ids, told):
    model = random_spikegpt(31)
    with pytest.raises(TaskError, match=told):
        model(ids)
    with pytest.raises(TaskError, match=told):
        model.advance(ids, model.initial_state(1))
    with pytest.raises(TaskError, match=told):
        random_spikegpt(31, classes=2)(ids)


def test_ids_may_be_int32_and_a_mask_must_fit():
    model = random_spikegpt(31, classes=2)
    ids = random_ids(model, 2, 5)
    assert torch.equal(model(ids.int()), model(ids))
    with pytest.raises(TaskError, match=r"mask has the shape \(2, 4\)"):
        model(ids, torch.ones(2, 4, dtype=torch.bool))


def test_config_survives_its_dictionary():
    config = SpikeGPTConfig(50277, 768, 18, 3072, classes=2, binary_embedding=False)
    assert config.to_dict()["architecture"] == "spikegpt"
    assert SpikeGPTConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "change", [{"width": 0}, {"layers": 2.0}, {"width": True}, {"classes": -1}, {"binary_embedding": "yes"}], ids=str
)
def test_unusable_config_is_refused(change):
    config = SpikeGPTConfig(31, 8, 2, 16).to_dict()
    with pytest.raises(CheckpointError, match="does not describe"):
        SpikeGPTConfig.from_dict(config | change)
    config.pop("width")
    with pytest.raises(CheckpointError, match="width"):
        SpikeGPTConfig.from_dict(config)
