from math import inf, nan

import pytest
from networks.tied import TiedNetwork

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import StudyError
from qslm.formats import FLOAT32, Format
from qslm.search.costs import Costs

FOUR, EIGHT = Format("integer", 4), Format("integer", 8)


def test_the_cost_of_an_allocation_is_the_sum_over_its_sites_and_float_costs_nothing():
    anatomy = find_anatomy(TiedNetwork())
    matrices = [site.name for site in anatomy.sites if not site.is_vector]
    costs = Costs({(name, FOUR): 2.0**place for place, name in enumerate(matrices)})
    assert costs.total(Allocation.uniform(anatomy, FOUR)) == 2.0 ** len(matrices) - 1
    assert costs.total(Allocation.uniform(anatomy, FLOAT32)) == 0
    assert costs.total(Allocation.uniform(anatomy, FLOAT32).replace(matrices[2:3], FOUR)) == 4


def test_a_bit_less_costs_four_times_as_much_and_a_larger_matrix_more():
    costs = Costs.by_bits([("small", 100), ("large", 300)], [EIGHT, FOUR])
    assert costs.of("small", FOUR) == pytest.approx(4**4 * costs.of("small", EIGHT))
    assert costs.of("large", FOUR) == pytest.approx(3 * costs.of("small", FOUR))
    assert Costs.by_bits([], [FOUR]).values == {}


@pytest.mark.parametrize("cost", [-1e-9, nan, inf])
def test_what_is_no_cost_is_refused(cost):
    with pytest.raises(StudyError, match=r"(?s)of head at int4.*0 or more"):
        Costs({("head", FOUR): cost})


@pytest.mark.parametrize(
    ("loss", "error", "expected"),
    [
        (3.0, 0.0, 3.0),  # measured exactly
        (3.0, 1.0, 2.0),  # as sure as the cost
        (3.0, 1e9, 1.0),  # says nothing
        (-3.0, 0.5, 0.0),  # no cost is negative
        (inf, nan, 1.0),
        (nan, nan, 1.0),
        (3.0, inf, 1.0),
    ],
)
def test_costs_and_measured_losses_are_averaged_by_their_precision(loss, error, expected):
    costs = Costs({("head", FOUR): 1.0, ("head", EIGHT): 0.0, ("emb", FOUR): 5.0})
    found = costs.corrected({("head", FOUR): (loss, error), ("head", EIGHT): (1.0, 0.1), ("other", FOUR): (1.0, 0.1)})
    assert found.of("head", FOUR) == pytest.approx(expected)
    assert found.of("head", EIGHT) == 0 and found.of("emb", FOUR) == 5 and found.of("other", FOUR) == 0
