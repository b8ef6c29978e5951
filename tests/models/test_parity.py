"""The recurrent form is the parallel form, and the check of it notices whatever a state leaves out."""

import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt

import qslm.models.parity
from qslm.errors import CheckpointError
from qslm.models.parity import Parity, check_recurrent
from qslm.models.spikegpt import LayerState, SpikeGPT

# (vocabulary, width, layers, ffn_width, tokens)
SHAPES = [(2, 1, 1, 1, 3), (7, 5, 3, 9, 1), (31, 24, 2, 40, 30), (61, 65, 4, 130, 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forms_agree(shape, dtype):
    *sizes, tokens = shape
    for binary, classes in ((True, None), (False, None), (True, 3)):
        model = random_spikegpt(*sizes, binary=binary, classes=classes, dtype=dtype)
        ids = random_ids(model, 3, tokens)
        parity = check_recurrent(model, ids)
        assert parity.spikes == 3 * tokens * model.config.width * model.config.layers * 2
        if dtype == torch.float64:
            assert parity.flipped == 0 and parity.outputs < 1e-9


def test_steps_equal_the_window_in_float64():
    model = random_spikegpt(31, 33, 3, 70, dtype=torch.float64)
    ids = random_ids(model, 2, 25)
    state, logits = model.initial_state(2), []
    for token in ids.unbind(1):
        out, state = model.step(token, state)
        logits.append(out)
    torch.testing.assert_close(torch.stack(logits, 1), model(ids), rtol=0, atol=1e-9)
    first, state = model.advance(ids[:, :7], model.initial_state(2))
    second, _ = model.advance(ids[:, 7:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), model(ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("field", LayerState._fields)
def test_a_state_that_is_not_carried_is_noticed(field, monkeypatch):
    model = random_spikegpt(31, 24, 2, 40)
    carried = SpikeGPT.hidden

    def forgetful(self, ids, state, trace):
        fresh = self.initial_state(len(ids))
        kept = state and [s._replace(**{field: getattr(f, field)}) for s, f in zip(state, fresh, strict=True)]
        return carried(self, ids, kept, trace)

    monkeypatch.setattr(SpikeGPT, "hidden", forgetful)
    with pytest.raises(CheckpointError, match="differs from the parallel form"):
        check_recurrent(model, random_ids(model, 4, 30))


def test_a_state_that_leaks_between_sequences_is_noticed():
    class Leaky(SpikeGPT):
        def hidden(self, ids, state, trace):
            if state is not None:
                state = [s._replace(wkv=s.wkv.roll(1, 0)) for s in state]
            return super().hidden(ids, state, trace)

    model = random_spikegpt(31, 24, 2, 40)
    model.__class__ = Leaky
    with pytest.raises(CheckpointError, match="logits by"):
        check_recurrent(model, random_ids(model, 4, 30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_spike_within_rounding_of_the_threshold_may_differ_in_float32_only(dtype, monkeypatch):
    near = Parity(spikes=10, flipped=1, margin=5e-10, outputs=0.0)
    monkeypatch.setattr(qslm.models.parity, "compare_forms", lambda model, ids: near)
    model = random_spikegpt(dtype=dtype)
    if dtype == torch.float32:
        assert check_recurrent(model, random_ids(model, 1, 3)) == near
        return
    with pytest.raises(CheckpointError, match="1 of 10 spikes"):
        check_recurrent(model, random_ids(model, 1, 3))


def test_a_network_of_nan_is_noticed():
    model = random_spikegpt()
    model.head.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="nan"):
        check_recurrent(model, random_ids(model, 1, 3))
