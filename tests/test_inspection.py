"""The anatomy and the bytes of a network at every width."""

import pytest

from qslm.allocation import Allocation
from qslm.formats import Format
from qslm.inspection import WIDTHS, inspect
from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import SpikeGPT


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


def test_blocks_modules_and_sites_have_their_bytes_at_every_width(model):
    inspection = inspect(model, template=Format.parse("int8-g32"))
    tree = inspection.to_dict()
    blocks = tree["blocks"]
    modules = [module for block in blocks for module in block["modules"]]
    sites = [site for module in modules for site in module["sites"]]
    for width in inspection.widths:
        for level in (blocks, modules, sites):
            assert sum(part["bytes"][str(width.bits)] for part in level) == width.tensor_bytes
            assert sum(part["share"] for part in level) == pytest.approx(1)
    key = next(site for site in sites if site["site"] == "blocks.1.ffn.key.weight")  # 40 x 16, one group a row
    assert key["bytes"]["32"] == 40 * 16 * 4
    assert key["bytes"]["4"] == 40 * 16 // 2 + 40 * 2 + 40 // 2  # codes, scales of two bytes, zero points
    embedding = next(site for site in sites if site["site"] == "emb.weight")  # 50 x 16 signs
    assert embedding["bytes"]["8"] == embedding["bytes"]["4"] == 50 * 16 // 8
