"""The engine's reader of packed models: the same sites and places as Python's, and nothing else."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm import _native, artifact
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site
from qslm.formats import BFLOAT16, FLOAT16, FLOAT32, SIGN, Format, header, matrix_shape, stored_tensors
from qslm.formats.manifest import VERSION
from qslm.quantizers import RoundedSites

KINDS = {"integer": 0, "sign": 1, "float32": 2, "float16": 3, "bfloat16": 4}
SCALES = {"float16": 0, "float32": 1, "uint8": 2, "power": 3}
GRAINS = [f"{grain}{scale}" for grain in ("row", "g32", "g64", "g128") for scale in ("", "-s32", "-s8")] + ["tensor"]
integers = st.builds(
    lambda bits, symmetric, grain: Format.parse(f"int{bits}{symmetric}-{grain}"),
    st.integers(1, 8), st.sampled_from(["", "-sym"]), st.sampled_from(GRAINS),
)  # fmt: skip
formats = integers | st.sampled_from([FLOAT32, FLOAT16, BFLOAT16, SIGN, Format.parse("int4-sym-g64-p2")])
names = st.sampled_from(["a", "a.b", "a-b", "b", "blocks.0.w", "blocks.1.w", "blocks.10.w", "z"])
shapes = st.tuples(st.integers(2, 150), st.integers(2, 150)) | st.tuples(st.integers(2, 9), st.just(3), st.just(5))


def written(folder, drawn, *, by_columns=False) -> tuple[bytes, Allocation]:
    """The bytes of a packed model of sites (name, shape, format), beside a vector, an alias and a number."""
    sites = [
        Site(n, s, "input", n, binarized=f == SIGN, sparse=by_columns, aliases=(f"{n}.alias",)) for n, s, f in drawn
    ]
    more = [Site("ln", (24,), "input", "ln"), Site("mean", (), "input", "mean", kind="buffer")]
    allocation = Allocation(Anatomy((*sites, *more)), (*(f for _, _, f in drawn), FLOAT16, FLOAT32))
    generator = torch.Generator().manual_seed(0)
    weights = {site.name: torch.randn(site.shape, generator=generator) for site in allocation.anatomy.sites}
    artifact.write(folder, RoundedSites(weights, allocation), allocation, config={})
    return (folder / "model.safetensors").read_bytes(), allocation


def expected(content: bytes, allocation: Allocation) -> dict[str, dict[str, object]]:
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    found = {}
    for site, format in allocation.items():
        rows, columns = matrix_shape(site.shape)
        places = {
            name: 8 + length + entries[name]["data_offsets"][0]
            for name, _, _ in stored_tensors(format, site.shape, site.name)
        }
        coded = format.kind != "float"
        codes = {"integer": ".codes", "sign": ".signs", "float": ""}[format.kind]
        found[site.name] = {
            "kind": KINDS[format.kind if coded else format.value_type],
            "bits": format.bits,
            "symmetric": not format.has_zeros,
            "activations": format.activations,
            "by_columns": coded and site.sparse,
            "scale_type": SCALES[format.scale_type],
            "rows": rows,
            "columns": columns,
            "group": format.group_size or columns,
            "one_scale": format.granularity == "tensor",
            "codes": places[f"{site.name}{codes}"],
            **{part: places.get(f"{site.name}.{part}") for part in ("scales", "zeros", "step")},
        }
    return found


@given(st.lists(st.tuples(names, shapes, formats), min_size=1, max_size=6, unique_by=lambda one: one[0]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_sites_of_any_packed_model_are_found_where_they_lie(tmp_path_factory, drawn, by_columns):
    content, allocation = written(tmp_path_factory.mktemp("file"), drawn, by_columns=by_columns)
    assert _native.read_file(content) == expected(content, allocation)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    drawn = [
        ("w", (20, 40), Format.parse("int3-g32")),
        ("v", (5, 7), SIGN),
        ("u", (4, 40), Format.parse("int5-row-s8")),
    ]
    return written(tmp_path_factory.mktemp("small"), drawn, by_columns=True)[0]


def test_every_truncation_is_refused(small):
    for size in range(len(small)):
        with pytest.raises(ValueError, match=r"\.$"):
            _native.read_file(small[:size])
    with pytest.raises(ValueError, match="bytes of data"):
        _native.read_file(small + b"\0")


def test_every_altered_byte_of_the_header_is_refused_or_changes_nothing_that_is_used(small):
    """Spaces in JSON and the name of the quantizer are not the engine's; names are what they say."""
    length = int.from_bytes(small[:8], "little")
    wanted, generator, refused = _native.read_file(small), random.Random(0), 0
    for at in range(8 + length):
        altered = bytearray(small)
        altered[at] ^= 1 << generator.randrange(8)
        try:
            found = _native.read_file(bytes(altered))
        except ValueError:
            refused += 1
            continue
        renamed = len(found.keys() ^ wanted.keys()) <= 2
        assert found == wanted or (renamed and list(found.values()) == list(wanted.values())), (at, altered[at])
    assert refused > 0.85 * length


HUGE = 10**18


@pytest.mark.parametrize(
    ("sites", "more", "message"),
    [
        ({"w": ["int4-row", [HUGE, HUGE]]}, {}, "too large"),
        ({"w": ["float32", [0, HUGE]]}, {}, "too large"),
        ({"w": ["float32", [1] * 9]}, {}, "not one"),
        ({"w": ["int4-row", [2**20, 2**10]]}, {}, "tensors"),
        ({"w": ["int4-row", [4, 2**17]]}, {}, "131072 columns"),
        ({"w": ["int4-row", [-4, -4]]}, {}, "not one"),
        ({"w": ["int4-row", [4.5, 4]]}, {}, "."),
        ({"w": ["int4-row", "44"]}, {}, "."),
        ({"w": ["int4-row"]}, {}, "."),
        ({"w": ["int4-row", [4, 4], 1]}, {}, "more than"),
        ({"w": "int4-row"}, {}, "."),
        ({"w": [4, [4, 4]]}, {}, "."),
        ({"w": ["int9-row", [4, 4]]}, {}, "does not run w in int9-row"),
        ({"w": ["int16-row", [4, 4]]}, {}, "at most 8 bits"),
        ({"w": ["int4-tensor-s8", [4, 4]]}, {}, "does not run"),
        ({"w": ["int4-g64-p2", [4, 4]]}, {}, "does not run"),
        ({"w": ["int4", [4, 4]]}, {}, "does not run"),
        ({"w": ["int4-row-a9", [4, 4]]}, {}, "does not run"),
        ({"w": ["int4-row", [0, 4]]}, {}, "columns"),
        ({"é": ["float32", [1]]}, {}, "plain"),
        ({"w": ["float32", [1]]}, {"aliases": {"v": "x"}}, "alias"),
        ({"w": ["float32", [1]]}, {"aliases": {"v": []}}, "."),
        ({"w": ["float32", [1]]}, {"aliases": []}, "."),
        ({"w": ["float32", [1]]}, {"version": 1}, "version 1"),
        ({"w": ["float32", [1]]}, {"by_columns": ["w"]}, "by columns"),
        ({"w": ["int4-row", [4, 4]]}, {"by_columns": ["v"]}, "by columns"),
        ([], {}, "."),
    ],
)
def test_hostile_metadata_are_refused(sites, more, message):
    content = {"aliases": {}, "quantizer": "minmax", "sites": sites, "version": VERSION} | more
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    with pytest.raises(ValueError, match=message):
        _native.read_file(header([], text) + bytes(64))


def test_sites_must_be_in_order_and_the_header_as_promised():
    text = '{"aliases":{},"quantizer":"clip","sites":{"b":["float32",[1]],"a":["float32",[1]]},"version":2}'
    with pytest.raises(ValueError, match="order"):
        _native.read_file(header([("a", "F32", (1,)), ("b", "F32", (1,))], text) + bytes(8))
    good = text.replace('"b":["float32",[1]],"a"', '"a":["float32",[1]],"b"')
    assert set(_native.read_file(header([("a", "F32", (1,)), ("b", "F32", (1,))], good) + bytes(8))) == {"a", "b"}
    one, other = ("a", "F32", (1,)), ("b", "F32", (1,))
    for stored in ([one], [one, ("b", "I32", (1,))], [one, ("c", "F32", (1,))], [one, ("b", "F32", (1, 1))], [other]):
        with pytest.raises(ValueError, match=r"tensors|follow"):
            _native.read_file(header(stored, good) + bytes(4 * len(stored)))


@pytest.mark.parametrize(("value", "place"), [(float("nan"), 0), (float("inf"), 3), (-1.0, 19), (0.0, 5)])
def test_scales_must_be_positive_and_finite(small, value, place):
    start = _native.read_file(small)["w"]["scales"] + 2 * place
    altered = small[:start] + np.float16(value).tobytes() + small[start + 2 :]
    with pytest.raises(ValueError, match="w has a scale"):
        _native.read_file(altered)


def test_unused_bits_must_be_zero(small):
    end = _native.read_file(small)["v"]["codes"] + -(-35 // 8) - 1
    altered = bytearray(small)
    altered[end] |= 0x80
    with pytest.raises(ValueError, match="v has unused bits"):
        _native.read_file(bytes(altered))
