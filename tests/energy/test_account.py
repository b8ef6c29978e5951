"""The account against one by hand, and the bound against its own equation."""

import pytest

from qslm.energy import (
    DECODE,
    FLOATING,
    INTEGER,
    MACHINES,
    PREFILL,
    RAN,
    SPARSE,
    Operations,
    Placement,
    Scenario,
    Terms,
    blocks,
    bound,
    load_table,
    make_account,
    price,
)
from qslm.energy.account import _integers, _spikes
from qslm.energy.layers import Embedding, Neurons
from qslm.energy.matrix import Matrix
from qslm.energy.operations import accumulate, mac, plain
from qslm.errors import EnergyError
from qslm.formats import FLOAT16, SIGN, Format

TABLE = load_table()
LAYERS = (
    Embedding(path="emb", sites={"emb.weight": (100, 8)}, width=8, binarized=True, tokens=10, ones=40),
    Matrix(path="matrix", sites={"matrix.weight": (4, 8)}, out=4, width=8, tokens=10, zeros=20),
    Neurons(path="lif", channels=4, tokens=10, spikes=6),
)
TERMS = Terms({"emb.weight": SIGN, "matrix.weight": Format.parse("int4-sym-row")})


def test_an_account_by_hand():
    account = make_account(LAYERS, TABLE, DECODE, RAN, TERMS)
    matrix, lif, embedding = account.energies["matrix"], account.energies["lif"], account.energies["emb"]
    # a token: 6 live inputs of 4 products each in float16, and a rescaling an output
    assert matrix.compute == pytest.approx(6 * 4 * (1.1 + 0.4) + 4 * 3.7)
    # 16 bytes of codes and 8 of scales from DRAM; 8 inputs and 4 outputs of 2 bytes from SRAM; half a byte a product
    assert matrix.memory == pytest.approx(24 * 162.5 + 24 * 2.5 + 12 * 2.5)
    assert lif.compute == pytest.approx(4 * (0.9 + 2 * 0.9 + 3.7) + 0.6 * 0.9)
    assert lif.memory == pytest.approx(4 * 8 * 2.5)
    assert (embedding.compute, embedding.memory) == (0, pytest.approx(162.5))
    assert account.total.total == pytest.approx(sum(one.total for one in (matrix, lif, embedding)))
    assert matrix.derived == pytest.approx(4 * 3.7) and lif.derived == pytest.approx(4 * 0.9)
    assert account.bytes() == {
        ("weights", "DRAM"): 24, ("rows", "DRAM"): 1, ("activations", "SRAM 32KB"): 24, ("state", "SRAM 32KB"): 32,
        ("buffer", "SRAM 32KB"): 12,
    }  # fmt: skip


def test_a_prefill_reads_the_weights_once():
    decode, prefill = (make_account(LAYERS, TABLE, one, RAN, TERMS).work for one in (DECODE, PREFILL))
    assert prefill.bytes["weights"] == decode.bytes["weights"] == 24
    for what in ("buffer", "rows", "activations", "state"):
        assert prefill.bytes[what] == pytest.approx(1024 * decode.bytes[what])
    assert prefill.total("mac") == pytest.approx(1024 * decode.total("mac"))


def test_the_baselines_by_hand():
    integer = make_account(LAYERS, TABLE, Scenario("ten", 10), INTEGER, TERMS)
    assert integer.operations["matrix"].counts[mac("int4", "int16", "int32")] == 10 * 8 * 4
    assert integer.operations["matrix"].bytes["weights"] == 24
    assert integer.operations["lif"] == Operations({plain("add", "float32"): 40})
    sparse = make_account(LAYERS, TABLE, Scenario("ten", 10), SPARSE, TERMS)
    assert sparse.operations["matrix"].counts[mac("int4", "int16", "int32")] == (10 * 8 - 20) * 4
    assert sparse.operations["matrix"].bytes["buffer"] == 60 * 4 / 2
    assert sparse.operations["lif"] == integer.operations["lif"]
    floats = make_account(LAYERS, TABLE, Scenario("ten", 10), FLOATING, TERMS)
    assert floats.energies["matrix"].compute == pytest.approx(320 * 1.5)
    assert floats.operations["matrix"].bytes["weights"] == 64


def test_candidates_differ_by_their_terms_alone():
    sizes = []
    for text in ("int8-sym-row", "int4-sym-row", "int2-sym-row"):
        terms = Terms({"matrix.weight": Format.parse(text)})
        sizes.append(make_account(LAYERS, TABLE, DECODE, INTEGER, terms).energies["matrix"])
    assert sizes[0].memory > sizes[1].memory > sizes[2].memory
    assert sizes[0].compute > sizes[1].compute > sizes[2].compute


@pytest.mark.parametrize("machine", MACHINES)
def test_activations_of_32_bits_cost_more(machine):
    wide, narrow = (
        make_account(LAYERS, TABLE, DECODE, machine, Terms({"matrix.weight": FLOAT16}, type))
        for type in ("float32", "float16")
    )
    assert (wide.total.total > narrow.total.total) == (machine != FLOATING)


def test_what_cannot_be_accounted_is_refused():
    with pytest.raises(EnergyError, match="0 tokens"):
        make_account((), TABLE, DECODE)
    with pytest.raises(EnergyError, match="'analog'"):
        make_account(LAYERS, TABLE, DECODE, "analog")
    with pytest.raises(EnergyError, match="no memory 'L2'"):
        make_account(LAYERS, TABLE, DECODE, placement=Placement(weights="L2"))


def test_operations_add_and_scale():
    one = Operations({mac("int4", "int4", "int32"): 3}, {"weights": 2})
    other = Operations({accumulate("int4", "int32"): 1, mac("int4", "int4", "int32"): 1}, {"state": 1})
    both = (one + other).times(2)
    assert both.counts == {mac("int4", "int4", "int32"): 8, accumulate("int4", "int32"): 2}
    assert both.bytes == {"weights": 4, "state": 2}
    assert str(mac("int4", "int8", "int32")) == "mac int4 x int8 -> int32"
    assert str(accumulate("int4", "int32")) == "accumulate int4 -> int32"
    assert str(plain("compare", "float32")) == "compare float32"
    assert Operations({plain("add", "int32"): 0}) == Operations()


def test_layers_belong_to_the_blocks_of_their_sites():
    from networks.spikegpt import random_spikegpt

    from qslm.anatomy.find import find_anatomy

    anatomy = find_anatomy(random_spikegpt())
    paths = {"emb": "input", "blocks.1.att_lif": "attention 1", "blocks.0.ffn": "attention 0", "head": "output"}
    layers = [Neurons(path=path, channels=1) for path in paths]
    assert blocks(anatomy, layers) == paths


# ---- the bound -------------------------------------------------------------------------------------------------


MOVING = Placement(sums="SRAM 32KB")
DATAFLOWS = {
    "registers": (1, False, Placement()),
    "stepwise": (1, False, MOVING),
    "eventwise": (1, True, MOVING),
    "first_spike": (2, False, Placement()),
    "first_spike_stepwise": (2, False, MOVING),
}


@pytest.mark.parametrize("steps", [5, 7, 10])
@pytest.mark.parametrize("kind", DATAFLOWS)
def test_at_the_bound_both_machines_cost_the_same(steps, kind):
    found, (sums, eventwise, where) = bound(TABLE, steps), DATAFLOWS[kind]
    spikes = getattr(found, kind) * steps * 1024
    one = price(_spikes(1024, 4, steps, spikes, sums, eventwise), TABLE, where).total
    assert one == pytest.approx(price(_integers(1024, 4, found.bits), TABLE, where).total)


def test_a_bound_by_hand():
    """T = 7 against int3, a weight of 4 bits from SRAM of 2.5 pJ a byte: pJ a weight."""
    integer = 0.2 * 12 / 64 * 1 + 0.1 + 1.25 + 2 * 3 / 8 * 2.5 / 1024  # product, sum, buffer, activations
    integer += 0.05 * 12 / 16 - 0.2 * 12 / 64  # from the multiplier of int4, the next wider one
    rest = 7 * (0.1 + 2 / 8 * 2.5) / 1024  # comparisons and spikes of 1 bit
    expected = (integer - rest) / (7 * (0.1 + 1.25))
    assert bound(TABLE, 7).registers == pytest.approx(expected)


def test_counted_spikes_pay_off_only_when_they_are_rare_and_first_spikes_almost_always():
    for steps in range(5, 11):
        found = bound(TABLE, steps)
        assert found.eventwise < 0.06 < found.stepwise < found.registers < 0.25  # about 6 % is published
        assert found.first_spike < found.registers
        assert 0.9 < found.nonzero <= 1


def test_the_bound_falls_with_the_steps():
    found = [bound(TABLE, steps) for steps in (3, 7, 15)]
    assert [one.bits for one in found] == [2, 3, 4]
    assert found[0].registers > found[1].registers > found[2].registers
    assert "T = 7 against int3" in str(found[1])


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_have_no_bound(steps):
    with pytest.raises(EnergyError):
        bound(TABLE, steps)
