import hashlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.allocation import Allocation, Footprint
from qslm.anatomy import Anatomy, Site
from qslm.errors import AllocationError, FormatError
from qslm.formats import BFLOAT16, FLOAT16, FLOAT32, SIGN, Format, header
from qslm.formats.manifest import Manifest

INT4, INT8 = Format.parse("int4-g64"), Format.parse("int8-row")
ANATOMY = Anatomy(
    (
        Site("emb.weight", (97, 48), "input", "emb", binarized=True),
        Site("ln.weight", (48,), "input", "ln"),
        Site("key.weight", (48, 100), "attention 0", "key"),
        Site("decay", (1, 1, 48), "attention 0", "."),
        Site("statistics", (4, 4), "attention 0", ".", kind="buffer"),
        Site("head.weight", (97, 48), "output", "head", aliases=("decoder.weight", "readout")),
    )
)


def test_uniform():
    allocation = Allocation.uniform(ANATOMY, INT4, vectors=FLOAT16)
    assert allocation.formats == (SIGN, FLOAT16, INT4, FLOAT16, FLOAT16, INT4)
    assert Allocation.uniform(ANATOMY, INT4, signs=False).formats == (INT4, FLOAT32, INT4, FLOAT32, FLOAT32, INT4)
    assert set(Allocation.float32(ANATOMY).formats) == {FLOAT32}
    assert allocation.quantizer == "minmax"


def test_lookup_and_replace_understand_aliases():
    allocation = Allocation.uniform(ANATOMY, INT4)
    changed = allocation.replace(["readout", "key.weight"], INT8)
    assert changed["head.weight"] == changed["decoder.weight"] == changed["key.weight"] == INT8
    assert allocation["head.weight"] == INT4
    assert allocation.diff(changed) == [("key.weight", INT4, INT8), ("head.weight", INT4, INT8)]
    assert changed.replace(["key.weight", "head.weight"], INT4) == allocation
    with pytest.raises(AllocationError, match="nothing"):
        allocation.replace(["nothing"], INT8)


def test_equality_and_hash():
    one, two = Allocation.uniform(ANATOMY, INT4), Allocation.uniform(Anatomy(ANATOMY.sites), INT4)
    assert one == two
    assert len({one, two, one.replace(["key.weight"], INT8), Allocation.uniform(ANATOMY, INT4, quantizer="clip")}) == 3


def test_quantizers_by_site():
    """What is not rounded to integers has none; where all are the same, it is one name."""
    one = Allocation.uniform(ANATOMY, INT4, quantizer="clip")
    mixed = one.replace(["key.weight"], INT8, "gptq")
    assert mixed.quantizers == ("clip", "gptq") and mixed.named_quantizers == {
        "key.weight": "gptq",
        "head.weight": "clip",
    }
    assert {site.name: name for site, _, name in mixed.choices() if name} == mixed.named_quantizers
    assert mixed.replace(["readout"], INT4, "gptq").quantizer == "gptq"
    assert mixed.replace(["key.weight"], INT4, "clip") == one and hash(one) != hash(mixed)
    assert mixed.replace(["key.weight"], FLOAT32).quantizer == "clip"
    assert Allocation(ANATOMY, one.formats, ("x",) * 6) == Allocation(ANATOMY, one.formats, "x")


def test_quantizers_by_site_go_through_json_and_count_in_the_header():
    one = Allocation.uniform(ANATOMY, INT4, quantizer="clip")
    mixed = one.replace(["key.weight"], INT4, "gptq")
    assert Allocation.from_json(ANATOMY, mixed.to_json()) == mixed and mixed.key != one.key
    assert Manifest.parse(mixed.metadata()).quantizer == mixed.named_quantizers
    assert len(mixed.metadata()) > len(one.metadata())
    assert mixed.footprint().header == len(header(mixed.manifest().stored(), mixed.metadata()))
    for wrong in ({"key.weight": "gptq"}, {**mixed.named_quantizers, "ln.weight": "clip"}, {"key.weight": 1}, [], None):
        text = json.dumps({**json.loads(mixed.to_json()), "quantizer": wrong})
        with pytest.raises(AllocationError):
            Allocation.from_json(ANATOMY, text)
    with pytest.raises(AllocationError, match="2 quantizers for 6 sites"):
        Allocation(ANATOMY, one.formats, ("clip", "gptq"))
    with pytest.raises(AllocationError, match="is not the name of a quantizer"):
        one.replace(["key.weight"], INT4, "no/name")


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("ln.weight", INT4, "vector"), ("decay", INT4, "vector"), ("statistics", INT4, "buffer"),
        ("key.weight", SIGN, "does not binarize"), ("ln.weight", SIGN, "does not binarize"),
    ],
)  # fmt: skip
def test_unsuitable_formats_are_refused_by_name(name, format, message):
    with pytest.raises(AllocationError, match=message) as caught:
        Allocation.float32(ANATOMY).replace([name], format)
    assert name in caught.value.problem
    assert caught.value.remedy


def test_other_refusals():
    with pytest.raises(AllocationError, match="2 formats for 6 sites"):
        Allocation(ANATOMY, (INT4, INT4))
    with pytest.raises(AllocationError, match="quantizer"):
        Allocation.uniform(ANATOMY, INT4, quantizer="../x")
    clash = Anatomy((Site("w", (2, 4), "input", "w"), Site("w.codes", (4,), "input", "w")))
    with pytest.raises(FormatError, match=r"w\.codes"):
        Allocation.uniform(clash, INT4).footprint()


def test_json_and_back():
    allocation = Allocation.uniform(ANATOMY, INT4, quantizer="clip").replace(["key.weight"], BFLOAT16)
    text = allocation.to_json()
    assert json.loads(text)["sites"]["key.weight"] == "bfloat16"
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert Allocation.from_json(ANATOMY, text) == allocation
    assert allocation.key == hashlib.sha256(text.encode()).hexdigest()
    assert allocation.key != Allocation.uniform(ANATOMY, INT4).key


def _without(text: str, name: str) -> str:
    content = json.loads(text)
    del content["sites"][name]
    return json.dumps(content)


GOOD = Allocation.float32(ANATOMY).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"), ("[]", "keys"), ('{"sites":{}}', "keys"), ("[" * 100_000, "not JSON"),
        ("9" * 9999, "not JSON"),
        ('{"quantizer":1,"sites":{}}', "map names"), ('{"quantizer":"minmax","sites":[]}', "map names"),
        ('{"quantizer":"minmax","sites":{"a":{}}}', "map names"), (_without(GOOD, "decay"), "decay"),
        (GOOD.replace('"decay"', '"decoy"'), "decay"), (GOOD.replace("}}", ',"x":"float32"}}'), "'x'"),
        (GOOD.replace("float32", "float33", 1), "float33"), (GOOD.replace("float32", "sign", 2), "binarize"),
        (GOOD.replace("minmax", "min max"), "quantizer"),
    ],
)  # fmt: skip
def test_other_json_is_refused(text, message):
    with pytest.raises(AllocationError, match=message):
        Allocation.from_json(ANATOMY, text)


def test_footprint_by_hand():
    allocation = Allocation.uniform(ANATOMY, INT4, vectors=FLOAT16)
    found = allocation.footprint()
    signs, key, head = 97 * 48 // 8, 48 * 100 // 2, 97 * 48 // 2
    scales = 2 * (48 * 2 + 97) + (48 * 2 // 2 + (97 + 1) // 2)
    assert found.weights == signs + key + head
    assert found.scales == scales
    assert found.vectors == 2 * (48 + 48 + 16)
    assert found.tensors == found.weights + found.scales + found.vectors
    assert found.file == found.tensors + found.header
    assert found.header % 8 == 0
    eight = Allocation.uniform(ANATOMY, Format.parse(f"{INT4}-s8"), vectors=FLOAT16).footprint()
    assert (eight.weights, eight.vectors) == (found.weights, found.vectors)
    assert eight.scales == scales - (48 * 2 + 97) + 2 * 4  # a byte a scale less, and two steps
    assert Allocation.float32(ANATOMY).footprint().tensors == ANATOMY.float32_bytes


@given(st.lists(st.sampled_from([INT4, INT8, FLOAT32, FLOAT16, SIGN]), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_bytes_are_a_sum_over_sites(formats):
    suited = tuple(
        FLOAT16 if (site.is_vector and format.is_integer) or (format == SIGN and not site.binarized) else format
        for site, format in zip(ANATOMY.sites, formats, strict=True)
    )
    single = [Allocation(Anatomy((site,)), (format,)) for site, format in zip(ANATOMY.sites, suited, strict=True)]
    assert Allocation(ANATOMY, suited).footprint().tensors == sum(a.footprint().tensors for a in single)


def test_text_is_a_table():
    text = str(Allocation.uniform(ANATOMY, INT4))
    assert "key.weight" in text
    assert "int4-g64" in text
    assert "file" in text.splitlines()[-1]
    assert str(Footprint(1000, 0, 0, 24)) == "file 1.02 kB (1.00 KiB), tensors 1.00 kB (0.98 KiB)"


def test_a_search_over_a_thousand_sites_is_cheap():
    sites = tuple(Site(f"blocks.{i}.weight", (768, 768), f"attention {i}", "key") for i in range(1000))
    allocation = Allocation.uniform(Anatomy(sites), INT8)
    start = time.process_time()
    for i in range(20):
        allocation = allocation.replace([sites[i].name], INT4)
        assert hash(allocation)
        assert len(allocation.key) == 64
        assert allocation.footprint().file > 0
    assert (time.process_time() - start) / 20 < 0.1
