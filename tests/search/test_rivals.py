"""The strategies for comparison: what each of them does beside what the conformance suite asks of all."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks.encoder import SpikingEncoder

from qslm.anatomy.find import find_anatomy
from qslm.budget import Budget
from qslm.errors import StudyError
from qslm.formats import FLOAT32
from qslm.search import Goal, Options, Outcome, make_strategy

LIMIT = 0.05


@pytest.fixture(scope="module")
def anatomy():
    return find_anatomy(SpikingEncoder(depth=3))


def goal(max_bytes=None, **settings):
    return Goal(Budget(max_bytes, LIMIT, "relative", **settings), 20.0, False)


def run(anatomy, options, goal, loss):
    """(proposals, outcomes) of a search on an invented loss."""
    strategy, asked, told = make_strategy(options.strategy, anatomy, options, goal), [], []
    while (proposal := strategy.ask()) is not None:
        value = loss(proposal.allocation)
        verdict = goal.budget.verdict(proposal.allocation.footprint().file, value, value)
        asked.append(proposal)
        told.append(Outcome(verdict.quality_ok, verdict.memory_ok, value, value))
        strategy.tell(proposal, told[-1])
    return asked, told


def additive(anatomy, sensitive=()):
    """All matrices at 6 bits lose 0.04, a bit less 4 times as much; those of `sensitive` 100 times."""
    numel = sum(site.numel for site in anatomy.sites)

    def loss(allocation):
        return sum(
            0.04 * (100 if site.name in sensitive else 1) * site.numel / numel * 4.0 ** (6 - fmt.bits)
            for site, fmt in allocation.items()
            if fmt.is_integer
        )

    return loss


def smallest(asked, told):
    return min(p.allocation.footprint().file for p, o in zip(asked, told, strict=True) if o.quality_ok and o.memory_ok)


def test_uniform_goes_down_to_the_first_break(anatomy):
    asked, told = run(anatomy, Options(strategy="uniform"), goal(), additive(anatomy))
    assert [p.note for p in asked] == [f"whole network at int{bits}-row" for bits in (16, 14, 12, 10, 8, 6, 5)]
    assert [o.quality_ok for o in told] == [True] * 6 + [False]
    asked, _ = run(anatomy, Options(precisions=(4,), strategy="uniform"), goal(), additive(anatomy))
    assert asked[-1].allocation["emb.weight"] == FLOAT32


def test_greedy_lowers_one_matrix_by_one_step_at_a_time(anatomy):
    options = Options(strategy="greedy")
    loss = additive(anatomy, {"emb.weight"})
    steps = make_strategy("greedy", anatomy, options, goal()).steps()  # with what ask() knows from the probes
    proposal, kept, frozen, probes = next(steps), None, set(), 0
    while proposal is not None:
        ok = loss(proposal.allocation) <= LIMIT
        if proposal.tier == "greedy":
            ((name, old, new),) = kept.diff(proposal.allocation)
            assert options.formats.index(new) == options.formats.index(old) + 1 and name not in frozen
            frozen |= set() if ok else {name}
        probes += proposal.tier == "sensitivity"
        kept = proposal.allocation if ok and proposal.tier != "sensitivity" else kept
        try:
            proposal = steps.send(Outcome(ok, True, loss(proposal.allocation)))
        except StopIteration:
            proposal = None
    assert probes == len(options.matrices(anatomy)) and frozen
    assert kept["emb.weight"].bits > kept["classifier.weight"].bits


def test_greedy_finds_a_smaller_file_than_uniform(anatomy):
    asked, told = run(anatomy, Options(strategy="greedy"), goal(), additive(anatomy, {"emb.weight"}))
    uniform = run(anatomy, Options(strategy="uniform"), goal(), additive(anatomy, {"emb.weight"}))
    assert smallest(asked, told) < smallest(*uniform)


def test_greedy_takes_the_least_loss_per_byte_first(anatomy):
    """All cost the same for each number but one, which costs nothing: it goes first, all the way down."""
    free = "encoder.blocks.1.attn.k.m.weight"
    loss = additive(anatomy)

    def without(allocation):
        return loss(allocation.replace([free], FLOAT32))

    asked, _ = run(anatomy, Options(strategy="greedy"), goal(), without)
    steps = [p.note.partition(" at ")[0] for p in asked if p.tier == "greedy"]
    assert steps[:2] == [free, free]


def test_greedy_freezes_what_breaks_alone(anatomy):
    loss, worst = additive(anatomy), "classifier.weight"

    def breaking(allocation):
        return loss(allocation) + (1.0 if allocation[worst].bits < 6 else 0.0)

    asked, _ = run(anatomy, Options(strategy="greedy"), goal(), breaking)
    assert not any(p.note.startswith(worst) for p in asked if p.tier == "greedy")


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_what_exceeds_the_memory_is_not_asked(anatomy, name):
    """A budget just above the lowest precision: not one in a million even draws would keep it."""
    tight = goal(Options().smallest(anatomy).footprint().file + 400)
    asked, _ = run(anatomy, Options(strategy=name, max_evaluations=30), tight, additive(anatomy))
    assert all(tight.keeps_memory(p.allocation) for p in asked)
    assert len(asked) == 30


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_the_seed_alone_decides(anatomy, name):
    """Other seeds draw otherwise, and no global generator is read or moved."""
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first, again, other = (
        [
            p.allocation.key
            for p in run(anatomy, Options(strategy=name, max_evaluations=25, seed=s), goal(), additive(anatomy))[0]
        ]
        for s in (1, 1, 2)
    )
    assert first == again != other
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_samplers_learn(anatomy, name):
    """Half of the matrices cost 100 times: what is drawn late is smaller, of what holds, than a uniform precision."""
    sensitive = {site.name for site in anatomy.sites[::2]}
    asked, told = run(anatomy, Options(strategy=name, max_evaluations=200), goal(), additive(anatomy, sensitive))
    uniform = run(anatomy, Options(strategy="uniform"), goal(), additive(anatomy, sensitive))
    held = [o.quality_ok for o in told]
    assert sum(held[100:]) > sum(held[10:60])
    assert smallest(asked, told) <= smallest(*uniform)


def test_tpe_minimizes_what_the_budget_prefers(anatomy):
    """With a large mu the score is the memory alone; with mu 0 it is the quality alone."""
    sizes = {}
    for mu in (0.0, 1000.0):
        free = Goal(Budget(None, None, "relative", mu=mu), 20.0, False)
        asked, _ = run(anatomy, Options(strategy="tpe", max_evaluations=60), free, additive(anatomy))
        sizes[mu] = np.mean([p.allocation.footprint().file for p in asked[30:]])
    assert sizes[1000.0] < sizes[0.0]


def keys_asked():
    """The keys of what both samplers ask, over several generations."""
    network = find_anatomy(SpikingEncoder())
    options = [Options(strategy=name, max_evaluations=60) for name in ("tpe", "nsga2")]
    return [p.allocation.key for one in options for p in run(network, one, goal(), additive(network))[0]]


def test_samplers_go_on_the_same_in_another_process():
    """A replay must not hang on the hashes of strings; and Optuna's log stays silent."""
    here = Path(__file__).parent
    code = f"import sys; sys.path += {[str(here), str(here.parent)]!r}; import test_rivals as t; print(*t.keys_asked())"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == keys_asked()
    assert done.stderr == ""


def test_the_log_of_optuna_is_as_loud_as_it_was(anatomy, capfd):
    import optuna

    before = optuna.logging.get_verbosity()
    make_strategy("tpe", anatomy, Options(max_evaluations=2), goal()).ask()
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_a_missing_optuna_is_named_with_its_remedy(anatomy, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(StudyError, match=r"(?s)Optuna is not installed.*pip install 'qslm\[optuna\]'"):
        make_strategy(name, anatomy, Options(), goal())
    assert make_strategy("random", anatomy, Options(), goal()).ask()
