"""The anatomy and the bytes of a network at every width."""

import pytest

from qslm.allocation import Allocation
from qslm.formats import Format
from qslm.inspection import WIDTHS, inspect
from qslm.models.spikegpt import SpikeGPT, SpikeGPTConfig


@pytest.fixture
def model():
    return SpikeGPT(SpikeGPTConfig(vocabulary_size=50, width=16, layers=2, ffn_width=40))


def test_widths_are_those_of_uniform_allocations(model):
    inspection = inspect(model, template=Format.parse("int8-g32"))
    assert [width.bits for width in inspection.widths] == list(WIDTHS)
    for width in inspection.widths[1:]:
        uniform = Allocation.uniform(inspection.anatomy, Format.parse(f"int{width.bits}-g32"), signs=True)
        assert width.file_bytes == uniform.footprint().file


def test_the_papers_convention_counts_weights_and_float32_vectors(model):
    inspection = inspect(model)
    ten = next(width for width in inspection.widths if width.bits == 10)
    matrices = sum(site.numel for site in inspection.anatomy.sites if not site.is_vector)
    vectors = sum(site.numel for site in inspection.anatomy.sites if site.is_vector)
    assert ten.paper_bytes == pytest.approx(matrices * 10 / 8 + 4 * vectors, abs=len(inspection.anatomy.sites))


def test_the_tree_adds_up(model):
    tree = inspect(model).to_dict()
    assert sum(block["parameters"] for block in tree["blocks"]) == tree["parameters"]
    assert sum(block["share"] for block in tree["blocks"]) == pytest.approx(1)
    names = [site["site"] for block in tree["blocks"] for module in block["modules"] for site in module["sites"]]
    assert sorted(names) == sorted(model.state_dict())
