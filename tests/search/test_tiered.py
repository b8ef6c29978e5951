from dataclasses import replace

import pytest
from networks.encoder import SpikingEncoder
from networks.tied import TiedNetwork
from torch import nn

from qslm.anatomy import Anatomy
from qslm.anatomy.find import find_anatomy
from qslm.errors import AllocationError, FormatError, StudyError
from qslm.formats import FLOAT16, FLOAT32, SIGN, Format
from qslm.search import Options, Outcome, TieredSearch


def run(search, limit, memory_ok=lambda allocation: True, loss=None):
    """Drive a search on an invented network quality: it breaks when the loss is above `limit`."""
    asked = []
    loss = loss or additive({})
    while (proposal := search.ask()) is not None:
        assert proposal is search.ask()
        asked.append(proposal)
        value = loss(proposal.allocation)
        search.tell(proposal, Outcome(value <= limit, memory_ok(proposal.allocation), value))
    assert search.ask() is None
    return asked


def additive(sensitivity):
    """Each matrix loses 4^(8 - bits), times the sensitivity of its block or its module."""

    def loss(allocation):
        total = 0.0
        for site, fmt in allocation.items():
            factor = sensitivity.get(site.block, 1.0) * sensitivity.get(site.module, 1.0)
            total += factor * 4.0 ** (8 - fmt.bits) if fmt.kind == "integer" else 0.0
        return total

    return loss


def bits(allocation, block):
    return {fmt.bits for site, fmt in allocation.items() if site.block == block and fmt.kind == "integer"}


def accepted(asked, limit, loss):
    return [proposal.allocation for proposal in asked if loss(proposal.allocation) <= limit]


@pytest.fixture
def anatomy():
    return find_anatomy(SpikingEncoder(depth=3))


def test_the_global_tier_descends_and_stops_at_the_first_break(anatomy):
    loss = additive({})
    sites = sum(not site.is_vector for site in anatomy.sites)
    asked = run(TieredSearch(anatomy, Options(order="network")), limit=sites * 4.0**2, loss=loss)
    tiers = [proposal for proposal in asked if proposal.tier == "global"]
    assert [bits(p.allocation, "input") for p in tiers] == [{16}, {14}, {12}, {10}, {8}, {6}, {5}]
    assert tiers[0].note == "whole network at int16-row"
    block = next(proposal for proposal in asked if proposal.tier == "block")
    assert bits(block.allocation, "input") == {5} and bits(block.allocation, "output") == {6}


def test_unmet_memory_alone_does_not_stop_the_descent(anatomy):
    asked = run(TieredSearch(anatomy), limit=float("inf"), memory_ok=lambda allocation: False)
    assert [bits(p.allocation, "output") for p in asked] == [{b} for b in (16, 14, 12, 10, 8, 6, 5, 4, 3, 2)]


def test_blocks_go_from_the_least_sensitive_to_the_most(anatomy):
    loss = additive({"input": 30.0, "attention 0": 3.0, "attention 1": 1.0, "attention 2": 2.0, "output": 20.0})
    asked = run(TieredSearch(anatomy), limit=900.0, loss=loss)
    probed = [p.note.split(" alone")[0] for p in asked if p.tier == "sensitivity"]
    assert probed == list(anatomy.blocks)
    tried = list(dict.fromkeys(p.note.rpartition(" at ")[0] for p in asked if p.tier == "block"))
    expected = ["attention 1", "attention 2", "attention 0", "output", "input"]
    assert tried == [block for block in expected if block in tried] and len(tried) >= 3


def test_a_step_that_breaks_the_quality_is_reverted(anatomy):
    loss, limit = additive({"input": 50.0, "attn.q.m": 0.01}), 2000.0
    asked = run(TieredSearch(anatomy), limit, loss=loss)
    kept = None
    for proposal in (p for p in asked if p.tier in ("block", "module")):
        if kept is not None:
            changed = kept.diff(proposal.allocation)
            owners = {(anatomy[name].block, anatomy[name].module) for name, _, _ in changed}
            assert len({block for block, _ in owners}) == 1
            assert proposal.tier == "block" or len(owners) == 1
            assert all(new.bits < old.bits for _, old, new in changed)
        kept = proposal.allocation if loss(proposal.allocation) <= limit else kept
    last = accepted(asked, limit, loss)[-1]
    assert bits(last, "input") != bits(last, "attention 0")
    assert last["encoder.blocks.0.attn.q.m.weight"].bits < last["encoder.blocks.0.attn.k.m.weight"].bits


def test_nothing_is_asked_twice_and_the_bound_holds(anatomy):
    for order in ("sensitivity", "network"):
        for limit in (0.0, 1e-3, 10.0, 3000.0, 1e9):
            search = TieredSearch(anatomy, Options(order=order))
            asked = run(search, limit, loss=additive({"input": 9.0}))
            assert len({p.allocation.key for p in asked}) == len(asked) <= search.maximum_evaluations


def test_the_same_outcomes_give_the_same_proposals(anatomy):
    first, second = (run(TieredSearch(anatomy), 1500.0) for _ in range(2))
    assert first == second and len(first) > 20


def test_where_the_highest_precision_breaks_the_base_is_float32(anatomy):
    loss = additive({"input": 1e6, "output": 1e6})
    asked = run(TieredSearch(anatomy, Options(precisions=(8, 4))), limit=100.0, loss=loss)
    assert [p.note for p in asked[:2]] == ["whole network at int8-row", "whole network at float32"]
    last = accepted(asked, 100.0, loss)[-1]
    assert last["emb.weight"] == FLOAT32 and last["encoder.blocks.1.mlp.0.m.weight"].bits == 8


def test_template_vectors_and_signs_are_kept():
    model = SpikingEncoder()
    model.emb.binarized = True
    options = Options((4,), (Format.parse("int8-g32-s32"),), FLOAT16, quantizers=("minmax",))
    allocation = TieredSearch(find_anatomy(model), options).ask().allocation
    assert allocation["emb.weight"] == SIGN and allocation.quantizer == "minmax"
    assert allocation["classifier.bias"] == FLOAT16
    assert str(allocation["classifier.weight"]) == "int4-g32-s32"
    kept = TieredSearch(find_anatomy(model), Options((4,), signs=False)).ask().allocation
    assert str(kept["emb.weight"]) == "int4-row"


def test_a_tied_head_is_decided_with_the_input():
    anatomy = find_anatomy(TiedNetwork())
    asked = run(TieredSearch(anatomy), limit=100.0)
    assert not any(p.note.startswith("output") for p in asked)
    last = asked[-1].allocation
    assert last["head.weight"] == last["emb.weight"]


def test_a_limit_ends_the_search(anatomy):
    search = TieredSearch(anatomy, Options(max_evaluations=7))
    assert not search.limited
    assert len(run(search, 1500.0)) == 7 == search.maximum_evaluations
    assert search.limited
    whole = TieredSearch(anatomy)
    enough = TieredSearch(anatomy, Options(max_evaluations=len(run(whole, 1500.0))))
    run(enough, 1500.0)
    assert not whole.limited and not enough.limited


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"precisions": ()}, "empty"),
        ({"templates": (FLOAT16,)}, "no integer format"),
        ({"vectors": SIGN}, "no float format"),
        ({"order": "random"}, "order"),
        ({"max_evaluations": 0}, "evaluations"),
    ],
)
def test_bad_options_are_refused(options, told):
    with pytest.raises(AllocationError, match=told):
        Options(**options)


def test_no_allocation_of_the_search_is_smaller_than_the_smallest(anatomy):
    options = Options(precisions=(3, 6, 2))
    sizes = {p.allocation.footprint().file for p in run(TieredSearch(anatomy, options), limit=float("inf"))}
    assert min(sizes) == options.smallest(anatomy).footprint().file


def test_untimely_answers_are_refused(anatomy):
    first, second = TieredSearch(anatomy), TieredSearch(anatomy, Options(precisions=(4,)))
    first.ask()
    with pytest.raises(StudyError, match="not asked"):
        first.tell(second.ask(), Outcome(True, True, 0.0))


def test_a_network_of_vectors_is_asked_for_once():
    search = TieredSearch(find_anatomy(nn.LayerNorm(5)), Options(vectors=FLOAT16))
    assert [str(p.allocation["weight"]) for p in run(search, 1.0)] == ["float16"]


def literal(anatomy, **options):
    return TieredSearch(anatomy, Options(**options), literal=True)


def parts_of(asked, tier):
    return list(dict.fromkeys(p.note.rpartition(" at ")[0] for p in asked if p.tier == tier))


def test_the_literal_search_asks_for_every_block_and_every_module(anatomy):
    """One limit under which each block breaks alone: the saving search leaves all of them out, the literal none."""
    loss, limit = additive({"input": 50.0, "output": 50.0}), 40 * 4.0**2
    saving, asked = run(TieredSearch(anatomy), limit, loss=loss), run(literal(anatomy), limit, loss=loss)
    probes = [p for p in asked if p.tier == "sensitivity"]
    broken = [p.note.split(" alone")[0] for p in probes if loss(p.allocation) > limit]
    assert "input" in broken and "output" in broken
    modules = [f"{block} {module}" for block in anatomy.blocks[1:-1] for module in matrices(anatomy, block)]
    assert parts_of(asked, "module") == modules
    assert set(parts_of(saving, "block")).isdisjoint(broken)
    assert len({p.allocation.key for p in asked}) == len(asked) > len(saving)


def test_the_literal_block_tier_tries_a_block_that_broke_alone_on_top_of_the_others(anatomy):
    def loss(allocation):
        """The output breaks at 4 bits, the input where it stands before an attention 0 of more than 4."""
        at = {block: bits(allocation, block) == {4} for block in anatomy.blocks}
        return 2.0 if at["output"] or (at["input"] and not at["attention 0"]) else 0.0

    asked = run(literal(anatomy, precisions=(8, 4)), 1.0, loss=loss)
    assert "input" in parts_of(asked, "block")
    assert "input" not in parts_of(run(TieredSearch(anatomy, Options(precisions=(8, 4))), 1.0, loss=loss), "block")
    assert bits(accepted(asked, 1.0, loss)[-1], "input") == {4}


def matrices(anatomy, block):
    return [m for m in anatomy.modules(block) if any(not site.is_vector for site in anatomy.sites_of(block, m))]


@pytest.fixture
def slots():
    """An anatomy in which the matrices of the attention blocks may read spike counts."""
    anatomy = find_anatomy(SpikingEncoder(depth=3))
    return Anatomy(
        tuple(replace(one, spiking=not one.is_vector and one.block.startswith("attention")) for one in anatomy.sites)
    )


def reading(allocation, block):
    return {fmt.activations for site, fmt in allocation.items() if site.block == block and fmt.kind == "integer"}


SPIKES = {"templates": (Format.parse("int8-sym-row"),), "precisions": (8, 6, 4), "activations": (8, 6, 4)}


def test_weights_and_activations_go_down_in_turns_each_to_its_own_break(slots):
    def loss(allocation):
        read = [fmt.activations for _, fmt in allocation.items() if fmt.activations]
        return float(4 in bits(allocation, "attention 0")) + float(bool(read) and min(read) < 6)

    asked = run(TieredSearch(slots, Options(strategy="tiered", **SPIKES)), 0.5, loss=loss)
    walk = [(*bits(p.allocation, "attention 1"), *reading(p.allocation, "attention 1")) for p in asked]
    assert walk[:5] == [(8, 8), (8, 6), (6, 6), (6, 4), (4, 6)]
    assert [p.tier for p in asked[:6]] == ["global"] * 5 + ["sensitivity"]
    assert all(reading(p.allocation, block) == {0} for p in asked for block in ("input", "output"))
    last = accepted(asked, 0.5, loss)[-1]
    assert bits(last, "attention 0") == {6} and bits(last, "attention 1") == bits(last, "attention 2") == {4}
    assert {*reading(last, "attention 0"), *reading(last, "attention 1")} == {6}
    assert last.activation_bits == 6


def test_no_more_is_asked_than_foretold_with_activations(slots):
    search = TieredSearch(slots, Options(strategy="tiered", **SPIKES))
    assert len(run(search, float("inf"))) <= search.maximum_evaluations


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"activations": (4, 8)}, "no descending list"),
        ({"activations": (9,)}, "no descending list"),
        ({"activations": (4, 4)}, "no descending list"),
        ({"strategy": "knapsack"}, "knapsack does not choose the bits of activations"),
        ({"reconstruct": 1}, "no rounding learned"),
        ({"quantizers": ("awq",)}, "no scaled columns"),
    ],
)
def test_activations_that_cannot_be_are_refused(options, told):
    with pytest.raises(AllocationError, match=told):
        Options(**{"strategy": "tiered", **SPIKES, **options})


def test_groups_and_wide_weights_read_no_spike_counts():
    for options in ({"templates": (Format.parse("int8-sym-g64"),)}, {"precisions": (10, 8)}):
        with pytest.raises(FormatError, match="Weights that read spike counts"):
            Options(**{"strategy": "tiered", **SPIKES, **options})


def test_the_literal_global_tier_goes_past_a_break_while_memory_is_unmet(anatomy):
    def loss(allocation):
        return 1.0 if bits(allocation, "output") == {8} else 0.0

    small = Options(precisions=(16, 8, 4)).smallest(anatomy).footprint().file
    fits = lambda allocation: allocation.footprint().file <= small  # noqa: E731
    for memory_ok, expected in ((fits, [16, 8, 4]), (lambda allocation: True, [16, 8])):
        asked = run(literal(anatomy, precisions=(16, 8, 4)), 0.5, memory_ok=memory_ok, loss=loss)
        assert [bits(p.allocation, "output") for p in asked if p.tier == "global"] == [{b} for b in expected]
    saving = run(TieredSearch(anatomy, Options(precisions=(16, 8, 4))), 0.5, memory_ok=fits, loss=loss)
    assert [bits(p.allocation, "output") for p in saving if p.tier == "global"] == [{16}, {8}]


def test_a_block_of_one_module_has_a_second_turn_only_when_literal():
    model = nn.ModuleList(nn.Sequential(nn.Linear(8, 8, bias=False)) for _ in range(2))
    anatomy = find_anatomy(model)
    asked = {kind: run(TieredSearch(anatomy, literal=kind), 300.0, loss=additive({})) for kind in (False, True)}
    assert not parts_of(asked[False], "module")
    assert len(asked[True]) >= len(asked[False])
    assert literal(anatomy).maximum_evaluations > TieredSearch(anatomy).maximum_evaluations
