import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from qslm.errors import ArtifactError, FormatError
from qslm.formats import Format, canonical_json, header, stored_tensors
from qslm.formats.container import write

DTYPES = [torch.float64, torch.int64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool]
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(
    st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_the_library_reads_what_we_write(tmp_path_factory, described, metadata):
    described.pop("__metadata__", None)
    generator = torch.Generator().manual_seed(len(described))
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(dtype) for name, (dtype, shape) in described.items()
    }
    path = tmp_path_factory.mktemp("container") / "x.safetensors"
    digest = write(path, tensors, metadata)
    content = path.read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype
    with safe_open(path, framework="pt") as file:
        assert (file.metadata() or {}) == ({"qslm": metadata} if metadata else {})


def test_layout(tmp_path):
    tensors = {
        "b": torch.ones(3, dtype=torch.uint8), "z": torch.ones(2), "a": torch.ones(5, dtype=torch.uint8),
        "h": torch.ones(2, dtype=torch.float16),
    }  # fmt: skip
    write(tmp_path / "x", tensors, "{}")
    content = (tmp_path / "x").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    entries = json.loads(content[8 : 8 + length])
    assert list(entries) == ["__metadata__", "z", "h", "a", "b"]
    assert [entries[name]["data_offsets"] for name in "zhab"] == [[0, 8], [8, 12], [12, 17], [17, 20]]
    assert len(content) == 8 + length + 20
    described = [("b", "U8", (3,)), ("a", "U8", (5,)), ("h", "F16", (2,)), ("z", "F32", (2,))]
    assert header(described, "{}") == content[: 8 + length]


def test_the_order_of_the_tensors_does_not_matter(tmp_path):
    tensors = {name: torch.arange(4.0) for name in "cab"}
    one = write(tmp_path / "one", tensors, "m")
    assert one == write(tmp_path / "two", dict(sorted(tensors.items())), "m")


def test_equal_names_are_refused():
    stored = [*stored_tensors(Format.parse("int4-row"), (4, 4), "a"), ("a.codes", "F32", (3,))]
    with pytest.raises(FormatError, match=r"a\.codes"):
        header(stored, "")
    with pytest.raises(FormatError, match="__metadata__"):
        header([("__metadata__", "F32", (3,))], "")


def test_types_that_the_format_has_not_are_refused(tmp_path):
    with pytest.raises(FormatError, match="complex64"):
        write(tmp_path / "x", {"a": torch.zeros(2, dtype=torch.complex64)})
    assert list(tmp_path.iterdir()) == []


def test_canonical_json():
    assert canonical_json({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"\\u00e9"]}'


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    (tmp_path / ".x.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match=r"No space left.*\n.*Free some space"):
        write(path, {"a": torch.zeros(100_000)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="No such file"):
        write(tmp_path / "no" / "x", {"a": torch.zeros(1)})


def test_transposed_and_scalar_tensors(tmp_path):
    tensors = {"t": torch.arange(6.0).reshape(2, 3).T, "s": torch.tensor(7, dtype=torch.int64)}
    write(tmp_path / "x", tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(tmp_path / "x").items())
