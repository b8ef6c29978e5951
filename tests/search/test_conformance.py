"""What every strategy keeps to, over random invented networks and losses. A new strategy joins by its name in NAMES."""

from dataclasses import dataclass
from importlib.util import find_spec
from math import inf, nan

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm.allocation import Allocation
from qslm.anatomy import INPUT, OUTPUT, Anatomy, Site
from qslm.budget import Budget
from qslm.errors import AllocationError, StudyError
from qslm.formats import BFLOAT16, FLOAT16, FLOAT32, SIGN, Format
from qslm.search import NAMES, Goal, Options, Outcome, Proposal, make_strategy

BASELINE = 20.0
TEMPLATES = ("int8-row", "int8-sym-row", "int8-g32", "int8-tensor-s32", "int8-g32-s8")
ENOUGH = 40  # evaluations, for the strategies without an end of their own

every_strategy = pytest.mark.parametrize("name", NAMES)
many = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Question:
    """An invented network, what is asked of it, and how much each of its matrices loses at 0 bits."""

    anatomy: Anatomy
    options: Options
    goal: Goal
    sensitivity: tuple[float, ...]

    def loss(self, allocation: Allocation) -> float:
        """Additive; 4 times as much for a bit less. The losses may be infinite, no number, or gains."""
        lost = zip(self.sensitivity, allocation.items(), strict=True)
        return sum(factor * 4.0**-fmt.bits for factor, (_, fmt) in lost if fmt.is_integer)

    def outcome(self, allocation: Allocation) -> Outcome:
        loss = self.loss(allocation)
        verdict = self.goal.budget.verdict(allocation.footprint().file, loss, loss)
        return Outcome(verdict.quality_ok, verdict.memory_ok, loss, loss)


@st.composite
def anatomies(draw):
    """Up to three attention blocks of up to three modules, with or without embedding, head, tie and vectors."""
    width, vocabulary = draw(st.sampled_from((4, 32, 40))), 24
    sites = []
    tied, binarized = draw(st.booleans()), draw(st.booleans())
    if draw(st.booleans()) or tied:
        aliases = ("head.weight",) if tied else ()
        sites.append(Site("emb.weight", (vocabulary, width), INPUT, "emb", aliases, binarized and not tied))
    for block in range(draw(st.integers(1, 3))):
        path = f"blocks.{block}"
        for module in range(draw(st.integers(1, 3))):
            rows = draw(st.sampled_from((width, 3 * width)))
            sites.append(Site(f"{path}.m{module}.weight", (rows, width), f"attention {block}", f"m{module}"))
        if draw(st.booleans()):
            sites.append(Site(f"{path}.ln.weight", (width,), f"attention {block}", "ln"))
    if draw(st.booleans()) and not tied:
        sites.append(Site("head.weight", (vocabulary, width), OUTPUT, "head"))
    return Anatomy(tuple(sites))


@st.composite
def questions(draw, name):
    anatomy = draw(anatomies())
    options = Options(
        precisions=draw(st.lists(st.sampled_from((16, 12, 8, 6, 5, 4, 3, 2)), min_size=1, max_size=5, unique=True)),
        templates=tuple(draw(st.lists(st.sampled_from([*map(Format.parse, TEMPLATES)]), min_size=1, max_size=2))),
        vectors=draw(st.sampled_from((FLOAT32, FLOAT16, BFLOAT16))),
        signs=draw(st.booleans()),
        quantizers=(draw(st.sampled_from(("clip", "minmax"))),),
        order=draw(st.sampled_from(("sensitivity", "network"))),
        max_evaluations=draw(st.sampled_from((1, 3, ENOUGH))),
        strategy=name,
        seed=draw(st.integers(0, 3)),
    )
    smallest = options.smallest(anatomy).footprint().file
    mu = draw(st.sampled_from((None, 5.0)))
    budget = Budget(
        draw(st.sampled_from((None, smallest - 1, smallest, smallest + 300, 2 * smallest))),
        draw(st.sampled_from((None, 0.0, 0.05, 1.0, 1e9))),
        draw(st.sampled_from(("relative", "absolute"))),
        decision=draw(st.sampled_from(("bound", "point"))),
        mu=mu,
    )
    losses = st.one_of(st.floats(0.0, 1e3), st.sampled_from((0.0, 1e-9, -1.0, inf, nan)))
    count = len(anatomy.sites)
    sensitivity = tuple(draw(st.lists(losses, min_size=count, max_size=count)))
    return Question(anatomy, options, Goal(budget, BASELINE, higher_is_better=False), sensitivity)


def made(question):
    return make_strategy(question.options.strategy, question.anatomy, question.options, question.goal)


def run(strategy, outcome) -> list[Proposal]:
    """Everything that a strategy asks, which ends and never asks twice; between asking and telling it stays."""
    asked = []
    while (proposal := strategy.ask()) is not None:
        assert strategy.ask() is proposal
        asked.append(proposal)
        assert len(asked) <= strategy.maximum_evaluations
        strategy.tell(proposal, outcome(proposal.allocation))
    assert strategy.ask() is None
    assert len({proposal.allocation.key for proposal in asked}) == len(asked)
    return asked


def check_allocation(question, proposal):
    """Matrices in a format of the options or float32, vectors and signs as the options say."""
    options, allocation = question.options, proposal.allocation
    assert allocation.anatomy is question.anatomy and allocation.quantizer == options.quantizers[0]
    for site, fmt in allocation.items():
        if site.binarized and options.signs:
            assert fmt == SIGN
        elif site.is_vector:
            assert fmt == options.vectors
        else:
            assert fmt in (*options.formats, FLOAT32)
    assert proposal.tier and proposal.note


@every_strategy
@many
@given(data=st.data())
def test_it_ends_within_its_bound_with_allocations_of_the_options(name, data):
    question = data.draw(questions(name))
    for proposal in run(made(question), question.outcome):
        check_allocation(question, proposal)


@every_strategy
@many
@given(data=st.data())
def test_the_same_outcomes_give_the_same_proposals(name, data):
    question = data.draw(questions(name))
    assert run(made(question), question.outcome) == run(made(question), question.outcome)


@every_strategy
@many
@given(data=st.data())
def test_it_survives_whatever_is_told(name, data):
    question = data.draw(questions(name))
    outcomes = st.builds(Outcome, st.booleans(), st.booleans(), st.sampled_from((0.0, 0.3, -2.0, 1e300, inf, nan)))
    for proposal in run(made(question), lambda allocation: data.draw(outcomes)):
        check_allocation(question, proposal)


@every_strategy
@pytest.mark.parametrize("told", [Outcome(False, False, inf), Outcome(False, True, inf), Outcome(True, True, 0.0, 0.0)])
def test_it_survives_one_answer_to_everything(name, told):
    question = example(name)
    assert run(made(question), lambda allocation: told)


@every_strategy
def test_memory_alone_is_not_the_end(name):
    """All keeps the quality and nothing the memory, by what is told: more than one allocation is asked."""
    question = example(name)
    asked = run(made(question), lambda allocation: Outcome(True, False, question.loss(allocation), 0.0))
    assert len(asked) > 1


@every_strategy
def test_it_finds_what_keeps_a_budget_that_uniform_precisions_keep(name):
    question = example(name)
    asked = [proposal.allocation for proposal in run(made(question), question.outcome)]
    kept = [one for one in asked if question.outcome(one).quality_ok and question.outcome(one).memory_ok]
    assert kept


@every_strategy
def test_untimely_answers_are_refused(name):
    question = example(name)
    strategy, told = made(question), Outcome(True, True, 0.0)
    other = Proposal(Allocation.float32(question.anatomy), "elsewhere", "not asked")
    with pytest.raises(StudyError, match="not asked"):
        strategy.tell(other, told)
    first = strategy.ask()
    with pytest.raises(StudyError, match="not asked"):
        strategy.tell(other, told)
    assert strategy.ask() is first
    strategy.tell(first, told)
    with pytest.raises(StudyError, match="not asked"):
        strategy.tell(first, told)


@every_strategy
def test_one_block_alone_and_vectors_alone(name):
    alone = (Site("weight", (8, 8), "attention 0", "."),)
    for sites in (alone, (Site("weight", (8,), "attention 0", "."),)):
        question = example(name, Anatomy(sites))
        for proposal in run(made(question), question.outcome):
            check_allocation(question, proposal)


@every_strategy
def test_a_tied_head_has_the_format_of_its_embedding(name):
    tied = Site("emb.weight", (40, 32), INPUT, "emb", ("head.weight",))
    question = example(name, Anatomy((tied, *example(name).anatomy.sites[1:-1])))
    asked = run(made(question), question.outcome)
    assert asked
    for proposal in asked:
        assert proposal.allocation["head.weight"] == proposal.allocation["emb.weight"]


def example(name, anatomy=None):
    """Two blocks of two modules with embedding and head; 6 bits keep the loss, 8 bits the memory."""
    blocks = [
        Site(f"blocks.{block}.m{module}.weight", (32, 32), f"attention {block}", f"m{module}")
        for block in range(2)
        for module in range(2)
    ]
    ends = Site("emb.weight", (40, 32), INPUT, "emb"), Site("head.weight", (40, 32), OUTPUT, "head")
    anatomy = anatomy or Anatomy((ends[0], *blocks, ends[1]))
    options = Options(precisions=(16, 8, 6, 4, 2), strategy=name, max_evaluations=ENOUGH)
    goal = Goal(
        Budget(options.uniform(anatomy, options.formats[1]).footprint().file, 0.05, "relative"), BASELINE, False
    )
    loss = 0.04 * 4.0**6 / len(anatomy.sites)
    return Question(anatomy, options, goal, tuple(loss for _ in anatomy.sites))


def test_the_names_are_the_strategies():
    assert len(set(NAMES)) == len(NAMES) >= 8
    with pytest.raises(AllocationError, match=r"(?s)no strategy 'magic'.*tiered.*nsga2"):
        make_strategy("magic", example("tiered").anatomy, Options(), example("tiered").goal)
    with pytest.raises(AllocationError, match="no strategy 'magic'"):
        Options(strategy="magic")
    with pytest.raises(AllocationError, match="-1 is no seed"):
        Options(seed=-1)


def test_optuna_is_there_for_these_tests():
    assert find_spec("optuna") is not None
