"""A study chooses the bits of weights and of spike counts together, and packs what it measured."""

import json

import pytest
import torch
from networks.spikegpt import random_spikegpt
from networks.tasks import NextToken

from qslm import artifact, folders
from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.energy import Placement, Terms, load_table, meter_calls, per_token, task_calls
from qslm.errors import StudyError
from qslm.evaluation import Evaluator, Ledger, evaluate
from qslm.formats import Format
from qslm.loading.checkpoint import Checkpoint, load_checkpoint
from qslm.search import Options
from qslm.spike import SpikeOptions, spike
from qslm.spiking.layer import RoundedLayer
from qslm.spiking.slot import SpikingSlot
from qslm.study import search, select
from qslm.study.folder import ENERGY
from qslm.study.packing import pack

OPTIONS = Options(
    strategy="tiered",
    order="network",
    templates=(Format.parse("int8-sym-row"),),
    precisions=(8, 4, 2),
    activations=(8, 3),
    quantizers=("gptq",),
)
RISE = Budget(max_bytes=None, max_loss=0.2, kind="relative", decision="point")


@pytest.fixture(scope="module")
def slots(tmp_path_factory):
    """The folder of a network whose layers may read spike counts, and the network that it was."""
    folder, model = tmp_path_factory.mktemp("slots") / "slots", random_spikegpt(vocabulary=40, width=32, layers=2)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    found = Checkpoint("random", model, None, "", 0)
    spike(found, NextToken(model), folder, SpikeOptions(ratio=0.05, float_weights=True))
    return folder, before


@pytest.fixture(scope="module")
def study(slots, tmp_path_factory):
    """A run folder, its selection, and the network and the task that were studied."""
    run, opened = tmp_path_factory.mktemp("study") / "run", load_checkpoint(slots[0])
    task = NextToken(opened.model)
    return run, search(opened, task, budget=RISE, output=run, options=OPTIONS), opened, task


def test_the_folder_holds_the_weights_as_they_were(slots):
    folder, before = slots
    model = load_checkpoint(folder).model
    held = [one for one in model.modules() if isinstance(one, SpikingSlot)]
    assert len(held) == 14
    state = model.state_dict()
    assert state.keys() == before.keys() and all(torch.equal(state[name], one) for name, one in before.items())
    spiking = [site for site in find_anatomy(model).sites if site.spiking]
    assert len(spiking) == 14 and all(site.block.startswith("attention") for site in spiking)


def test_both_kinds_of_bits_are_chosen_and_packed(study):
    run, selection, _, task = study
    chosen = {str(fmt) for site, fmt in selection.allocation.items() if site.spiking}
    with Ledger.read(run / folders.LEDGER) as ledger:
        tried = {text for row in ledger.rows("search") for text in row.allocation.split('"') if "-a" in text}
    assert chosen and all("-a" in text for text in chosen) and {text[-2:] for text in tried} == {"a8", "a3"}
    packed = load_checkpoint(run / "artifact")
    layers = [one for one in packed.model.modules() if isinstance(one, RoundedLayer)]
    assert {layer.activations.encoding.bits for layer in layers} <= {8, 3} and len(layers) == 14
    there = evaluate(packed.model, task, "report")
    assert (there.value, selection.difference.split) == (selection.selected.value, "report")
    assert artifact.read(run / "artifact").file_bytes == selection.allocation.footprint().file


def test_the_account_of_the_study_is_that_of_the_packed_model(study, slots):
    """Its matrices are counted as the spiking layers that they were while the selected allocation was applied."""
    run, selection, opened, task = study
    told = json.loads((run / ENERGY).read_text())
    assert "missing" not in told
    packed = load_checkpoint(run / "artifact").model
    meter = meter_calls(packed, task_calls(packed, task, 1024), 1024)
    found = per_token(meter.layers, load_table(), Terms.of(selection.allocation), Placement())
    with Ledger.read(run / folders.LEDGER) as ledger:
        keys = {row.note: row.key for row in ledger.rows("search")}
    wide, narrow = (told["candidates"][keys[f"whole network at int8-sym-row-a{bits}"]] for bits in (8, 3))
    assert wide["decode"]["compute_pj"] > 1.02 * narrow["decode"]["compute_pj"]
    floats = meter_calls(load_checkpoint(slots[0]).model, task_calls(opened.model, task, 1024), 1024)
    expected = per_token(floats.layers, load_table(), Terms(), Placement())
    assert told["candidates"][keys["the float network"]]["decode"] == pytest.approx(expected["decode"])
    mine = told["candidates"][selection.allocation.key]
    assert {name: pytest.approx(one) for name, one in mine.items()} == found and told["spike_share"] > 0.5


def test_the_network_is_given_back_with_its_numbers(study):
    _, _, opened, task = study
    before = evaluate(opened.model, task, "search")
    anatomy = find_anatomy(opened.model)
    with Evaluator(opened.model, anatomy, task) as evaluator:
        rounded = OPTIONS.uniform(anatomy, Format.parse("int2-sym-row-a2"))
        worse = evaluator.measure(
            Options(precisions=(2,), activations=(2,), templates=OPTIONS.templates).smallest(anatomy), "search"
        )
        assert rounded.activation_bits == 2
    assert worse.value != before.value
    assert evaluate(opened.model, task, "search").losses.values.tolist() == before.losses.values.tolist()


def test_another_budget_is_packed_from_the_same_study(study, slots, tmp_path):
    run, _, _, _ = study
    other = select(run, max_rise="10%")
    assert pack(other, tmp_path / "other", slots[0]) == artifact.read(tmp_path / "other").sha256
    assert any(isinstance(one, RoundedLayer) for one in load_checkpoint(tmp_path / "other").model.modules())


def test_activations_of_a_network_without_spiking_layers_are_refused(tmp_path):
    model = random_spikegpt(vocabulary=40, width=32, layers=2)
    with pytest.raises(StudyError, match="no layer of the network reads any"):
        search(model, NextToken(model), budget=RISE, output=tmp_path / "run", options=OPTIONS)
