import itertools
import math
from dataclasses import replace

import pytest

from qslm.budget import Budget, Candidate, check_possible, conclude, parse_loss, score, spell_loss
from qslm.errors import BudgetError


def candidate(key, file_bytes, value=0.8, loss=0.0, bound=None, ratio=None):
    ratio = file_bytes / 1000 if ratio is None else ratio
    return Candidate(key, file_bytes, ratio, value, loss, loss if bound is None else bound)


@pytest.mark.parametrize(
    ("decision", "loss", "bound", "quality_ok"),
    [("bound", 1.0, 2.0, True), ("bound", 1.0, 2.01, False), ("point", 1.0, 9.0, True), ("point", 2.1, 2.1, False)],
)
def test_the_decision_says_what_has_to_keep_the_limit(decision, loss, bound, quality_ok):
    verdict = Budget(1000, 2.0, "points", decision=decision).verdict(1000, loss, bound)
    assert (verdict.quality_ok, verdict.memory_ok, verdict.accepted) == (quality_ok, True, quality_ok)


def test_memory_is_kept_to_the_byte():
    budget = Budget(1000, 2.0, "points")
    assert budget.verdict(1000, 0.0, 0.0).accepted
    assert not budget.verdict(1001, 0.0, 0.0).accepted


def test_a_drop_of_exactly_the_limit_is_accepted_in_spite_of_rounding():
    drop = 100 * (0.857 - 0.837)
    assert drop > 2.0
    assert Budget(None, 2.0, "points", decision="point").verdict(1, drop, drop).accepted


def test_no_limits_accept_every_number_and_what_is_none_is_never_kept():
    assert Budget(None, None, "absolute").verdict(10**12, 1e300, math.inf).accepted
    assert not Budget(None, None, "absolute").verdict(1, math.nan, math.nan).accepted
    assert not Budget(None, None, "absolute").verdict(1, math.inf, math.inf).accepted
    assert not Budget(None, 2.0, "absolute").verdict(1, math.nan, math.nan).accepted
    assert not Budget(None, 2.0, "absolute").verdict(1, math.inf, math.inf).accepted


def test_the_smallest_accepted_candidate_is_selected():
    candidates = [candidate("a", 900), candidate("b", 500, loss=1.9, bound=2.5), candidate("c", 700, loss=1.0)]
    budget = Budget(800, 2.0, "points")
    assert budget.select(candidates).key == "c"
    assert Budget(800, 2.0, "points", decision="point").select(candidates).key == "b"
    assert Budget(400, 2.0, "points").select(candidates) is None


def test_the_selection_does_not_depend_on_the_order():
    candidates = [candidate("a", 500, loss=1.0), candidate("b", 500, loss=0.5), candidate("c", 500, loss=0.5)]
    orders = itertools.permutations(candidates)
    assert {Budget(800, 2.0, "points").select(order).key for order in orders} == {"b"}


def test_of_files_of_one_size_the_one_with_fewer_bits_of_activations_is_selected():
    wide, narrow = (replace(candidate(f"{bits}", 500, loss=1 / bits), activation_bits=bits) for bits in (8, 4))
    for order in ([wide, narrow], [narrow, wide]):
        assert Budget(800, 2.0, "points").select(order) is narrow


def test_a_candidate_without_a_number_is_never_selected_wherever_it_stands():
    """Python's min over a NaN depends on the order."""
    nan = candidate("nan", 100, value=math.nan, loss=math.nan)
    candidates = [nan, candidate("a", 500, value=0.7, loss=1.0), candidate("b", 600, value=0.8, loss=0.5)]
    for budget in (Budget(None, None, "points"), Budget(None, None, "points", prefer="score")):
        keys = {budget.select(order).key for order in itertools.permutations(candidates)}
        assert len(keys) == 1 and keys != {"nan"}
    assert Budget(None, None, "points").select([nan]) is None


@pytest.mark.parametrize(
    ("options", "prefer", "mu"),
    [
        ({}, "smallest", 0.0),
        ({"mu": 0.0}, "score", 0.0),
        ({"mu": 50.0}, "score", 50.0),
        ({"mu": 50.0, "prefer": "smallest"}, "smallest", 50.0),
        ({"prefer": "score"}, "score", 0.0),
    ],
)
def test_giving_mu_asks_for_the_score_unless_something_else_is_said(options, prefer, mu):
    budget = Budget(None, 1.0, "points", **options)
    assert (budget.prefer, budget.mu) == (prefer, mu)


@pytest.mark.parametrize(("mu", "key"), [(0.0, "good"), (4.9, "good"), (5.1, "small")])
def test_mu_trades_points_of_accuracy_for_memory(mu, key):
    """Half the float32 memory for 2.5 points: worth it from 5 points per unit of memory ratio on."""
    candidates = [candidate("good", 750, value=0.85), candidate("small", 250, value=0.825)]
    assert Budget(None, None, "points", prefer="score", mu=mu).select(candidates).key == key


@pytest.mark.parametrize(("mu", "key"), [(0.0, "good"), (1.9, "good"), (2.1, "small")])
def test_mu_trades_perplexity_for_memory(mu, key):
    candidates = [candidate("good", 750, value=24.0), candidate("small", 250, value=25.0)]
    assert Budget(None, None, "relative", prefer="score", mu=mu).select(candidates).key == key


def test_the_direction_of_the_score_can_be_given():
    candidates = [candidate("a", 500, value=0.7), candidate("b", 500, value=0.9)]
    budget = Budget(None, None, "absolute", prefer="score")
    assert budget.select(candidates).key == "a"
    assert budget.select(candidates, higher_is_better=True).key == "b"


def test_equation_one():
    assert score(0.857, 0.135, 10.0, higher_is_better=True) == pytest.approx(85.7 - 1.35)
    assert score(24.6, 0.313, 10.0, higher_is_better=False) == pytest.approx(24.6 + 3.13)


@pytest.mark.parametrize(
    ("drop", "rise", "expected"),
    [
        ("2", None, (2.0, "points")),
        ("2%", None, (2.0, "points")),
        (2.5, None, (2.5, "points")),
        (0, None, (0.0, "points")),
        (None, "1.0", (1.0, "absolute")),
        (None, ".5", (0.5, "absolute")),
        (None, "2%", (0.02, "relative")),
        (None, " 2 % ", (0.02, "relative")),
        (None, "150%", (1.5, "relative")),
        (None, None, (None, "absolute")),
    ],
)
def test_losses_are_read(drop, rise, expected):
    limit, kind = parse_loss(drop, rise)
    assert (limit, kind) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize("text", ["-1", "-0.5", "-2%"])
def test_what_is_negative_is_said_to_be(text):
    for option in ("max_drop", "max_rise"):
        with pytest.raises(BudgetError, match=f"{text} is negative"):
            parse_loss(**{option: text})


@pytest.mark.parametrize(
    ("kind", "loss", "text"),
    [
        ("absolute", 0.0001, "0.0001"),
        ("absolute", 0.0015, "0.0015"),
        ("absolute", 0.31, "0.310"),
        ("absolute", 1e-17, "0.000"),
        ("relative", 0.00001, "0.001 %"),
        ("relative", 0.02, "2.00 %"),
        ("points", 0.004, "0.004 points"),
        ("points", 0.05, "0.05 points"),
        ("points", 0.0, "0.00 points"),
    ],
)
def test_no_loss_is_rounded_to_nothing(kind, loss, text):
    assert spell_loss(kind, loss, signed=False) == text


@pytest.mark.parametrize("text", ["", "nan", "inf", "two", "1,5", "1_0", "%", "2%%", "1e400", "0x2", "--2", "²"])
def test_nonsense_is_refused(text):
    with pytest.raises(BudgetError, match="is not a number"):
        parse_loss(max_drop=text)
    with pytest.raises(BudgetError, match="is not a number"):
        parse_loss(max_rise=text)


def test_drops_beyond_everything_and_both_limits_are_refused():
    with pytest.raises(BudgetError, match="100 points"):
        parse_loss(max_drop="101")
    with pytest.raises(BudgetError, match="Both"):
        parse_loss(max_drop="1", max_rise="1")


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes": -1},
        {"max_bytes": "4MB"},
        {"max_loss": -0.1},
        {"max_loss": math.nan},
        {"max_loss": math.inf},
        {"mu": -1.0},
        {"mu": math.nan},
        {"kind": "percent"},
        {"decision": "guess"},
        {"prefer": "largest"},
    ],
)
def test_budgets_that_are_none_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        Budget(**{"max_bytes": 1000, "max_loss": 1.0, "kind": "points", **options})


def test_an_impossible_budget_names_one_that_is_possible():
    with pytest.raises(BudgetError) as caught:
        check_possible(1_000_000, 1_234_561, 10_000_000)
    assert "1,000,000 bytes" in caught.value.problem
    assert "1.24 MB (1.18 MiB, 12.4% of float32)" in caught.value.remedy
    assert "--max-memory 1234561B" in caught.value.remedy
    check_possible(1_240_000, 1_234_561)
    with pytest.raises(BudgetError, match=r"23\.76 kB \(23\.21 KiB\), to the byte: --max-memory 23758B"):
        check_possible(10, 23_758)
    check_possible(None, 1_234_561)
    with pytest.raises(BudgetError, match=r"1\.24 MB \(1\.18 MiB\)"):
        check_possible(0, 1_234_561)


@pytest.mark.parametrize(
    ("low", "loss", "high", "limit", "conclusion"),
    [
        (0.5, 1.0, 2.0, 2.0, "met"),
        (0.5, 1.0, 2.1, 2.0, "not shown"),
        (1.9, 3.0, 4.0, 2.0, "not shown"),
        (2.1, 3.0, 4.0, 2.0, "broken"),
        (2.1, 3.0, 4.0, None, "no limit"),
        (math.inf, math.inf, math.inf, 2.0, "broken"),
    ],
)
def test_the_report_says_what_it_shows(low, loss, high, limit, conclusion):
    assert conclude(loss, low, high, limit) == conclusion
