"""Folding changes no bit of what the network computes, and is refused by name where it would."""

import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.spikegpt import random_ids, random_spikegpt

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import AllocationError
from qslm.formats import FLOAT16, Format
from qslm.models.folds import Fold
from qslm.models.neurons import SpikeTrace
from qslm.quantizers import SCALING, InputStatistics, RoundedSites, fold, folds_of
from qslm.search import options

INT4 = Format.parse("int4-g32")


def network(classes=None, seed=0):
    return random_spikegpt(width=40, ffn_width=72, layers=2, classes=classes, seed=seed)


def random_inputs(model, seed=3, least=-8):
    """Statistics of every fold's readers with random exponents; multiples of the degree."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for one in model.folds():
        columns = model.get_parameter(one.consumers[0]).shape[1]
        exponents = torch.randint(least // one.degree, 1, (columns,), generator=generator) * one.degree
        statistics = InputStatistics(torch.eye(columns), 1, exponents.to(torch.int8))
        found |= dict.fromkeys(one.consumers, statistics)
    return found


def folded(model, allocation, inputs):
    sites = RoundedSites(model.state_dict(), allocation, inputs)
    return sites, fold(sites, folds_of(model, allocation.anatomy))


def loaded(sites, classes):
    model = network(classes, seed=9)
    model.load_state_dict({name: sites[name].dequantize() for name in sites})
    return model


def outputs(model, forced=None):
    ids = random_ids(model, 3, 17)
    trace = SpikeTrace(forced=forced)
    mask = None if model.config.classes is None else torch.arange(17) < torch.tensor([[17], [9], [1]])
    with torch.inference_mode():
        return model(ids, mask, trace), trace


def test_options_know_what_scales():
    assert set(SCALING) == set(options.SCALING) <= set(options.QUANTIZERS)


@pytest.mark.parametrize("classes", [None, 3])
def test_every_matrix_behind_a_layer_is_read_once_and_every_site_exists(classes):
    model = network(classes)
    anatomy = find_anatomy(model)
    consumers = [name for one in folds_of(model, anatomy) for name in one.consumers]
    matrices = {site.name for site in anatomy.sites if not site.is_vector} - {"emb.weight"}
    assert len(consumers) == len(set(consumers)) and set(consumers) == matrices


@pytest.mark.parametrize("classes", [None, 3])
def test_folding_the_float_network_changes_no_logit_by_1e_5_with_forced_spikes_and_no_bit(classes):
    """One reader is rounded to 16 bits, for without any nothing is folded; the float ones share its scales."""
    model = network(classes)
    anatomy = find_anatomy(model)
    for one in model.folds():
        allocation = Allocation.float32(anatomy).replace([one.consumers[0]], Format.parse("int16-row-s32"), "awq")
        plain, moved = folded(model, allocation, random_inputs(model))
        expected, trace = outputs(loaded(plain, classes))
        found, _ = outputs(loaded(moved, classes), trace.spikes)
        assert float((found - expected).abs().max()) < 1e-5
        changed = {name for name in moved if not torch.equal(moved[name].dequantize(), plain[name].dequantize())}
        assert changed == {*one.producers, *one.consumers}
        assert torch.equal(outputs(loaded(moved, classes))[0], expected)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("text", ["int2-row", "int3-g32", "int4-sym-g64-s32", "int8-row", "int16-row"])
def test_the_rounded_network_gives_the_same_bits_folded(text, classes):
    model = network(classes)
    allocation = Allocation.uniform(find_anatomy(model), Format.parse(text), vectors=FLOAT16, quantizer="awq")
    plain, moved = folded(model, allocation, random_inputs(model))
    expected, trace = outputs(loaded(plain, classes))
    found, _ = outputs(loaded(moved, classes))
    assert 0 < float(torch.stack(trace.spikes).mean()) < 1 and torch.equal(found, expected)
    for name in moved:
        assert moved[name].exponents is None and moved[name].stored(name)
        if moved[name].codes is not None:
            assert torch.equal(moved[name].codes, plain[name].codes)


def test_the_recurrent_form_is_the_same_folded():
    model = network()
    allocation = Allocation.uniform(find_anatomy(model), INT4, quantizer="awq")
    first, second = (loaded(sites, None) for sites in folded(model, allocation, random_inputs(model)))
    states = first.initial_state(2), second.initial_state(2)
    for ids in random_ids(model, 2, 8).T:
        (one, before), (other, after) = first.step(ids, states[0]), second.step(ids, states[1])
        states = before, after
        assert torch.equal(one, other)


def test_float_readers_and_makers_of_scaled_channels_take_part():
    """Of each fold one reader is rounded, the others and what makes the channels stay as they are."""
    model = network()
    anatomy = find_anatomy(model)
    names = ["blocks.0.att.key.weight", "blocks.1.att.output.weight", "blocks.1.ffn.value.weight"]
    allocation = Allocation.float32(anatomy).replace(names, INT4, "awq")
    plain, moved = folded(model, allocation, random_inputs(model))
    assert torch.equal(outputs(loaded(moved, None))[0], outputs(loaded(plain, None))[0])
    for name in ("blocks.0.att.receptance.weight", "blocks.1.att.value.weight", "blocks.1.ffn.key.weight"):
        assert not torch.equal(moved[name].dequantize(), plain[name].dequantize())


def test_readers_of_the_same_channels_have_the_same_scales_or_are_refused():
    model = network()
    allocation = Allocation.uniform(find_anatomy(model), INT4, quantizer="awq")
    mixed = allocation.replace(["blocks.1.ffn.receptance.weight"], INT4, "clip")
    with pytest.raises(AllocationError, match=r"ffn\.key\.weight are scaled and those of blocks\.1\.ffn\.receptance"):
        folded(model, mixed, random_inputs(model))
    inputs = random_inputs(model)
    name = "blocks.0.att.value.weight"
    inputs[name] = InputStatistics(inputs[name].moment, 1, torch.zeros(40, dtype=torch.int8))
    with pytest.raises(AllocationError, match=r"att\.key\.weight are scaled and those of blocks\.0\.att\.value"):
        folded(model, allocation, inputs)


def test_a_maker_with_one_scale_is_refused_by_name():
    model = network()
    allocation = Allocation.uniform(find_anatomy(model), INT4, quantizer="awq")
    _, moved = folded(
        model, allocation.replace(["blocks.0.ffn.key.weight"], Format.parse("int8-tensor")), random_inputs(model)
    )
    with pytest.raises(AllocationError, match=r"blocks\.0\.ffn\.key\.weight is int8-tensor") as caught:
        moved["blocks.0.ffn.key.weight"]
    assert "row or group" in caught.value.remedy


@pytest.mark.parametrize("name", ["blocks.1.ln1.weight", "blocks.1.att.value.weight"])
def test_numbers_that_the_scales_push_out_of_float16_are_refused_by_name(name):
    model = network()
    with torch.no_grad():
        model.get_parameter(name).fill_(6e4)
    allocation = Allocation.uniform(find_anatomy(model), INT4, vectors=FLOAT16, quantizer="awq")
    _, moved = folded(model, allocation, random_inputs(model))
    with pytest.raises(AllocationError, match=f"{name}: .* times a power of two are no "):
        moved[name]


def test_a_float_reader_whose_numbers_would_lose_bits_is_refused_by_name():
    model = network()
    name = "blocks.0.att.receptance.weight"
    with torch.no_grad():
        model.get_parameter(name).mul_(1e-6)
    allocation = Allocation.uniform(find_anatomy(model), INT4, quantizer="awq").replace([name], FLOAT16)
    _, moved = folded(model, allocation, random_inputs(model))
    with pytest.raises(AllocationError, match=f"{name}: .* are no float16"):
        moved[name]


def test_without_scaled_columns_the_sites_are_what_they_are():
    model = network()
    allocation = Allocation.uniform(find_anatomy(model), INT4, quantizer="clip")
    plain, moved = folded(model, allocation, random_inputs(model))
    assert list(moved) == list(plain) and len(moved) == len(plain)
    assert all(torch.equal(moved[name].dequantize(), plain[name].dequantize()) for name in moved)


def test_networks_that_do_not_say_so_fold_nothing_and_tied_tensors_do_not_fold():
    assert folds_of(SpikingEncoder(), find_anatomy(SpikingEncoder())) == ()
    model = network()
    model.head.weight = model.emb.weight
    anatomy = find_anatomy(model)
    last = Fold(("ln_out.weight", "ln_out.bias"), ("head.weight",))
    assert set(model.folds()) - set(folds_of(model, anatomy)) == {last}


def test_a_fold_of_unlike_numbers_of_channels_is_refused_by_name(monkeypatch):
    model = network()
    wrong = Fold(("blocks.0.ffn.key.weight",), ("blocks.0.att.output.weight",))
    monkeypatch.setattr(type(model), "folds", lambda self: (wrong,))
    with pytest.raises(AllocationError, match=r"ffn\.key\.weight 72, blocks\.0\.att\.output\.weight 40") as caught:
        folds_of(model, find_anatomy(model))
    assert "folds() of SpikeGPT" in caught.value.remedy
