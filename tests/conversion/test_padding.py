"""Padding is not counted: what stands in it changes neither weights nor statistics nor records."""

import pytest
import torch
from networks.bert import tiny_bert
from networks.sentences import LENGTHS, Padded
from networks.spikegpt import random_spikegpt
from torch import nn

from qslm.anatomy.find import find_anatomy
from qslm.calibration.calls import call_of, pieces
from qslm.conversion.convert import convert
from qslm.evaluation import evaluate
from qslm.evaluation.inputs import collect_inputs
from qslm.models.encoder import EncoderLogits
from qslm.models.padding import Text, text_of
from qslm.spiking import Encoding
from qslm.spiking.layer import FloatActivations, Record, SpikeActivations
from qslm.spiking.rivals import AtomLike, RoundToNearest, SpikeLlmLike

FORMS = {
    "float": lambda seen: FloatActivations(),
    "spikes": lambda seen: SpikeActivations(Encoding()),
    "nearest": lambda seen: RoundToNearest(),
    "atom": lambda seen: AtomLike(seen.statistics.moment.diagonal(), 0.0625, 8),
    "spikellm": lambda seen: SpikeLlmLike(seen.statistics.moment.diagonal()),
}
KINDS = ("bert", "distilbert", "spikegpt")


def classifier(kind):
    if kind == "spikegpt":
        return random_spikegpt(vocabulary=40, width=32, layers=2, classes=2)
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    return EncoderLogits(tiny_bert(kind))


def converted(kind, task):
    """The conversion, and what every form was made of."""
    seen, model = [], classifier(kind)
    forms = {name: lambda one, make=make: seen.append(one) or make(one) for name, make in FORMS.items()}
    return convert(model, find_anatomy(model), task, forms, tokens=1 << 20), seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_sees_text_alone_whatever_stands_in_the_padding(kind):
    task = Padded()
    (found, seen), (same, others) = converted(kind, task), converted(kind, Padded(padding=1))
    assert {one.statistics.count for one in seen} == {task.tokens} == {6 * sum(LENGTHS)}
    assert all(len(one.samples) == task.tokens for one in seen)
    assert len(found.layers) == {"bert": 12, "distilbert": 12, "spikegpt": 14}[kind]
    for one, other in zip(seen, others, strict=True):
        assert torch.equal(one.statistics.moment, other.statistics.moment) and torch.equal(one.samples, other.samples)
    for path, layer in found.layers.items():
        assert torch.equal(layer.neurons.codes, same.layers[path].neurons.codes)


@pytest.mark.parametrize("kind", ["bert", "spikegpt"])
@pytest.mark.parametrize("form", list(FORMS))
def test_a_record_counts_text_alone_whatever_stands_in_the_padding(kind, form):
    records = []
    for padding in (0, 1):
        task = Padded(padding=padding)
        found, _ = converted(kind, Padded())
        found.use(form)
        with text_of(found.model) as text:
            for layer in found.layers.values():
                layer.record = Record(text)
            evaluate(found.model, task, "search")
        records.append([{**vars(layer.record), "text": None} for layer in found.layers.values()])
    assert records[0] == records[1] and {one["tokens"] for one in records[0]} == {6 * sum(LENGTHS)}
    assert all(one["stored_bytes"] > 0 for one in records[0])


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_the_float_network_are_of_text_alone(kind):
    task, model = Padded(), classifier(kind)
    anatomy = find_anatomy(model)
    found, other = collect_inputs(model, anatomy, task), collect_inputs(model, anatomy, Padded(padding=1))
    blocks = {site.name for site in anatomy.sites if site.block.startswith("attention")}
    assert {one.count for name, one in found.items() if name in blocks} == {task.tokens}
    assert {one.count for name, one in found.items() if name not in blocks} == {6 * len(LENGTHS)}  # pooled
    for name, one in found.items():
        assert torch.equal(one.moment, other[name].moment), name


def test_calls_know_their_text():
    task, model = Padded(), classifier("spikegpt")
    batch = task.found[0]
    call = call_of(model, task, batch)
    assert torch.equal(call.text.mask, batch.mask) and call.tokens == sum(LENGTHS)
    assert call.cut(slice(1, 3), 5).tokens == 3 + 5
    assert sum(one.tokens for one in pieces(model, task, 1 << 20, 40)) == task.tokens
    assert len(pieces(model, task, 99, 40)) == 8  # two batches of 98, in pieces of two rows


def test_what_is_no_mask_of_padding_hides_nothing():
    class Own(nn.Module):
        def forward(self, ids, mask=None):
            return ids

    model, ids = Own(), torch.zeros(2, 5)
    for mask in (None, torch.ones(5, 5, dtype=torch.bool), torch.ones(2, 5)):
        assert Text.of(model, (ids, mask), {}).mask is None
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    text = Text.of(model, (ids,), {"mask": mask})
    assert text.mask is mask
    assert ids.flatten()[text.rows(ids[..., None])].numel() == 7
    assert text.rows(torch.zeros(3, 2, 5, 4)).sum() == 21  # time steps in front
    assert text.rows(torch.zeros(2, 4)) == slice(None)
