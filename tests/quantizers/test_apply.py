import pytest
import torch

from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site
from qslm.errors import AllocationError, FormatError
from qslm.formats import BFLOAT16, FLOAT16, FLOAT32, SIGN, Format
from qslm.formats.dtypes import value_dtype
from qslm.quantizers import QUANTIZERS, RoundedSites, round_site
from qslm.quantizers.apply import DATA_FREE
from qslm.search import options

INT4 = Format.parse("int4-g32")


def test_options_know_every_quantizer():
    assert set(QUANTIZERS) == set(options.QUANTIZERS)


def test_float32_changes_no_bit():
    weight = torch.tensor([0.0, -0.0, 1e-45, 3.4e38, -1.1])
    rounded = round_site(weight, FLOAT32)
    assert torch.equal(rounded.dequantize().view(torch.int32), weight.view(torch.int32))
    weight.fill_(7)
    assert float(rounded.values[0]) == 0.0


@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16])
def test_short_floats_round_and_refuse_overflow(format):
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_site(weight, format).dequantize(), weight.to(value_dtype(format)).float())
    with pytest.raises(FormatError, match=r"att\.key: 2 numbers are too large") as caught:
        round_site(torch.tensor([3.4e38, 0, -3.4e38]), format, name="att.key")
    assert "float32" in caught.value.remedy


def test_a_sign_is_whether_a_number_fires():
    rounded = round_site(torch.tensor([[0.5, 0.0], [-0.0, -1e-45]]), SIGN)
    assert rounded.dequantize().tolist() == [[1.0, 1.0], [1.0, -1.0]]


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (1, 1), (6, 1), (2, 3, 1, 4)])
@pytest.mark.parametrize("quantizer", sorted(DATA_FREE))
def test_any_shape(shape, quantizer):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrix = weight.reshape(1, -1) if weight.dim() == 1 else weight.reshape(shape[0], -1)
    rounded = round_site(weight, INT4, quantizer)
    assert rounded.shape == shape
    assert torch.equal(rounded.dequantize(), round_site(matrix, INT4, quantizer).dequantize().reshape(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_of_weights_are_taken_as_float32(dtype):
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(round_site(weight, INT4).codes, round_site(weight.float(), INT4).codes)


def test_a_parameter_and_a_transposed_weight():
    parameter = torch.nn.Parameter(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))
    rounded = round_site(parameter.T, INT4)
    assert torch.equal(rounded.codes, round_site(parameter.detach().T.contiguous(), INT4).codes)
    assert not rounded.dequantize().requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("format", [INT4, SIGN, FLOAT32, FLOAT16, Format.parse("int8-sym-tensor")])
def test_numbers_that_are_not_finite_are_refused_by_name(bad, format):
    weight = torch.zeros(3, 40)
    weight[1, 39] = bad
    with pytest.raises(FormatError, match=r"blocks\.0\.att\.key\.weight has 1 numbers"):
        round_site(weight, format, name="blocks.0.att.key.weight")
    with pytest.raises(FormatError):
        round_site(torch.tensor([[1e39]], dtype=torch.float64), format)


def test_nothing_to_round_and_unknown_quantizer():
    with pytest.raises(FormatError, match="no numbers"):
        round_site(torch.zeros(0, 3), INT4, name="w")
    with pytest.raises(AllocationError, match="clip, minmax"):
        round_site(torch.zeros(2, 3), INT4, "magic")


def test_sites_are_rounded_when_asked():
    anatomy = Anatomy((Site("w", (2, 40), "input", "emb"), Site("b", (2,), "input", "emb")))
    allocation = Allocation.uniform(anatomy, INT4, quantizer="clip")
    state = {"w": torch.randn(2, 40, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(2)}
    sites = RoundedSites(state, allocation)
    assert list(sites) == ["w", "b"]
    assert len(sites) == 2
    assert torch.equal(sites["w"].codes, round_site(state["w"], INT4, "clip").codes)
    with pytest.raises(AllocationError, match="no tensor 'b'"):
        RoundedSites({"w": state["w"]}, allocation)["b"]
    with pytest.raises(AllocationError, match=r"w has shape \[2\]"):
        RoundedSites({"w": state["b"]}, allocation)["w"]
