import hashlib
import json
import os
import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qslm import artifact, folders
from qslm.allocation import Allocation
from qslm.anatomy import Anatomy, Site
from qslm.errors import AllocationError, ArtifactError, FormatError
from qslm.formats import BFLOAT16, FLOAT16, FLOAT32, INTEGER_BITS, SIGN, Format, header, stored_tensors
from qslm.formats.manifest import VERSION
from qslm.packed import read_config
from qslm.quantizers import RoundedSites, round_site

ANATOMY = Anatomy(
    (
        Site("emb.weight", (17, 24), "input", "emb", binarized=True),
        Site("ln.weight", (24,), "input", "ln"),
        Site("blocks.0.key.weight", (140, 70), "attention 0", "key", sparse=True),
        Site("blocks.0.conv.weight", (5, 3, 7), "attention 0", "conv"),
        Site("blocks.0.decay", (1, 1, 24), "attention 0", "."),
        Site("blocks.0.mean", (), "attention 0", ".", kind="buffer"),
        Site("head.weight", (17, 24), "output", "head", aliases=("decoder.weight", "readout.weight")),
    )
)
CONFIG = {"architecture": "spikegpt", "width": 24, "classes": None, "names": ["a", "é"]}
TOKENIZER = '{"model": "é"}\r\n'
INT3 = Format.parse("int3-g32")


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site.name: torch.randn(site.shape, generator=generator) for site in ANATOMY.sites}


def packed(folder, allocation=None, **more):
    """An artifact of random weights, written into `folder`."""
    allocation = allocation or Allocation.uniform(ANATOMY, INT3, vectors=FLOAT16)
    options = {"config": CONFIG, "tokenizer_json": TOKENIZER} | more
    return artifact.write(folder, RoundedSites(state(), allocation), allocation, **options)


def sign_again(folder):
    """Make the digests of config.json fit the files, as whoever altered them on purpose would."""
    config = json.loads((folder / "config.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    config["qslm"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "config.json").write_text(json.dumps(config))


# ---- writing and reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", ["minmax", "clip"])
@pytest.mark.parametrize(
    "format",
    [f"int{b}-row" for b in INTEGER_BITS]
    + [f"int{b}-sym-g32-s32" for b in INTEGER_BITS]
    + ["int1-g32-s8", "int3-sym-g128-s8", "int8-row-s8", "int16-g64-s8", "int4-sym-g64-p2"]
    + ["int5-tensor", "int7-g64", "int3-g128", "int4-sym-tensor-s32", "float32", "float16", "bfloat16"],
)
def test_promised_bytes_are_written_and_read_back(tmp_path, format, quantizer):
    allocation = Allocation.uniform(ANATOMY, Format.parse(format), vectors=BFLOAT16, quantizer=quantizer)
    written = packed(tmp_path, allocation)
    file = tmp_path / "model.safetensors"
    assert file.stat().st_size == written.file_bytes == allocation.footprint().file
    assert sum(tensor.nbytes for tensor in load_file(file).values()) == allocation.footprint().tensors
    read = artifact.read(tmp_path)
    weights = state()
    for site, chosen in allocation.items():
        expected = round_site(weights[site.name], chosen, quantizer).dequantize()
        assert torch.equal(read.quantized[site.name].dequantize(), expected)
        assert torch.equal(read.state_dict()[site.name], expected)
    assert read.manifest.by_columns == ("blocks.0.key.weight",) * allocation["blocks.0.key.weight"].has_tiles
    assert read.allocation_json == allocation.to_json()
    assert Allocation.from_json(ANATOMY, read.allocation_json) == allocation


sites = st.tuples(st.integers(1, 40), st.integers(1, 140), st.sampled_from(INTEGER_BITS), st.booleans())
grains = [f"{grain}{scale}" for grain in ("row", "g32", "g64", "g128") for scale in ("", "-s32", "-s8")]


@given(st.lists(st.tuples(sites, st.sampled_from(["tensor", "tensor-s32", *grains])), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_promised_bytes_are_written_for_any_shapes(tmp_path_factory, drawn):
    names = [f"site.{i}" for i in range(len(drawn))]
    shapes = [site[:2] for site, _ in drawn]
    anatomy = Anatomy(tuple(Site(n, s, "input", n) for n, s in zip(names, shapes, strict=True)))
    formats = [Format.parse(f"int{b}{'-sym' * sym}-{grain}") for (_, _, b, sym), grain in drawn]
    suited = tuple(FLOAT16 if s.is_vector else f for s, f in zip(anatomy.sites, formats, strict=True))
    allocation = Allocation(anatomy, suited)
    generator = torch.Generator().manual_seed(0)
    weights = {site.name: torch.randn(site.shape, generator=generator) for site in anatomy.sites}
    folder = tmp_path_factory.mktemp("artifact")
    written = artifact.write(folder, RoundedSites(weights, allocation), allocation, config={})
    assert written.file_bytes == allocation.footprint().file


def test_float32_reproduces_every_bit(tmp_path):
    read = packed(tmp_path, Allocation.float32(ANATOMY)).state_dict()
    for name, tensor in state().items():
        assert torch.equal(read[name].view(torch.int32), tensor.view(torch.int32))


def test_what_stands_beside_the_model(tmp_path):
    packed(tmp_path / "a")
    read = artifact.read(tmp_path / "a")
    assert read.config == CONFIG
    assert read.tokenizer_json == TOKENIZER
    assert read.sha256 == hashlib.sha256((tmp_path / "a" / "model.safetensors").read_bytes()).hexdigest()
    assert folders.is_artifact(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_tied_tensors_are_stored_once(tmp_path):
    read = packed(tmp_path)
    restored = read.state_dict()
    assert restored["decoder.weight"] is restored["readout.weight"] is restored["head.weight"]
    assert not any(name.startswith(("decoder", "readout")) for name in load_file(tmp_path / "model.safetensors"))


def test_equal_contents_give_equal_files(tmp_path):
    for name in ("one", "two"):
        packed(tmp_path / name)
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_writing_again_replaces_all(tmp_path):
    packed(tmp_path)
    other = packed(tmp_path, Allocation.uniform(ANATOMY, FLOAT32), tokenizer_json=None, config={"qslm": 1, "x": 2})
    assert other.tokenizer_json is None
    assert other.config == {"x": 2}
    assert not (tmp_path / "tokenizer.json").exists()


def test_verify_says_what_it_checked(tmp_path):
    read = packed(tmp_path)
    checks = artifact.verify(tmp_path)
    assert any(read.sha256 in check for check in checks)
    assert any(f"{read.file_bytes:,}" in check for check in checks)
    assert any("7 sites" in check for check in checks)


# ---- refusals of writing ---------------------------------------------------------------------------------------


def test_sites_must_be_as_allocated(tmp_path):
    allocation = Allocation.uniform(ANATOMY, INT3)
    rounded = RoundedSites(state(), Allocation.uniform(ANATOMY, FLOAT32))
    with pytest.raises(AllocationError, match=r"key\.weight is float32"):
        artifact.write(tmp_path / "new", rounded, allocation, config={})
    with pytest.raises(FormatError, match=r"ln\.weight has 24 numbers that are not finite"):
        bad = state() | {"ln.weight": torch.full((24,), float("nan"))}
        artifact.write(tmp_path / "new", RoundedSites(bad, allocation), allocation, config={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_full_disk_changes_nothing(tmp_path, file):
    packed(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / f".{file}.tmp").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="No space left"):
        packed(tmp_path, Allocation.float32(ANATOMY))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    artifact.verify(tmp_path)


def test_a_full_disk_leaves_no_new_folder(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        packed(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in ("/proc/nothing", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtifactError, match="cannot") as caught:
            packed(folder)
        assert caught.value.remedy


def test_another_model_is_not_overwritten(tmp_path):
    for name, content, told in [
        ("config.json", '{"model_type": "bert"}', "another model, config.json"),
        ("model.safetensors", "weights", "a checkpoint, model.safetensors"),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ArtifactError, match=told):
            packed(folder)
        assert (folder / name).read_text() == content


def test_a_config_must_be_json(tmp_path):
    for config in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(ArtifactError, match="config"):
            packed(tmp_path / "new", config=config)
    assert list(tmp_path.iterdir()) == []


# ---- damaged and hostile files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The bytes of one small artifact with every kind of format."""
    folder = tmp_path_factory.mktemp("original")
    allocation = Allocation.uniform(ANATOMY, INT3).replace(["head.weight"], Format.parse("int12-sym-row-s32"))
    packed(folder, allocation)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def restore(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def same(folder, files) -> bool:
    """Whether the artifact reads as the original does; False when it is refused with a remedy."""
    try:
        read = artifact.read(folder)
        artifact.verify(folder)
    except ArtifactError as error:
        assert error.problem
        assert error.remedy
        assert len(str(error)) < 2000
        return False
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert read.config == CONFIG
    assert read.tokenizer_json == TOKENIZER
    return True


def test_random_damage_is_seen(tmp_path, original):
    generator = random.Random(0)
    seen = 0
    for _ in range(400):
        restore(tmp_path, original)
        name = generator.choice(sorted(original))
        content = bytearray(original[name])
        if generator.random() < 0.3:
            del content[generator.randrange(len(content)) :]
        else:
            for _ in range(generator.choice([1, 1, 3])):
                content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (tmp_path / name).write_bytes(content)
        seen += not same(tmp_path, original)
    assert seen > 380


def test_random_damage_with_fitting_digests_never_escapes(tmp_path, original):
    """Whatever passes without the digests is a valid model; whatever does not is an ArtifactError."""
    generator = random.Random(1)
    content = original["model.safetensors"]
    length = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for _ in range(600):
        damaged = bytearray(content)
        where = length if generator.random() < 0.8 else len(content)
        damaged[generator.randrange(where)] = generator.randrange(256)
        if generator.random() < 0.1:
            del damaged[generator.randrange(len(damaged)) :]
        restore(tmp_path, original | {"model.safetensors": bytes(damaged)})
        sign_again(tmp_path)
        try:
            values = artifact.read(tmp_path).state_dict().values()
            assert all(torch.isfinite(value).all() for value in values)
        except ArtifactError as error:
            assert error.remedy
            refused += 1
    assert refused > 400


def forge(folder, original, sites, *, tensors=None, **more):
    """A file whose header follows from any metadata at all, with zeros as data, and fitting digests."""
    content = {"aliases": {}, "quantizer": "minmax", "sites": sites, "version": VERSION} | more
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    start = header(tensors or [], text)
    restore(folder, original | {"model.safetensors": start + bytes(64)})
    sign_again(folder)


HUGE = 10**30


@pytest.mark.parametrize(
    ("sites", "more", "message"),
    [
        ({"w": ["int4-row", [HUGE, HUGE]]}, {}, "too large"),
        ({"w": ["float32", [0, HUGE]]}, {}, "too large"),
        ({"w": ["float32", [1] * 9]}, {}, "too large"),
        ({"w": ["int4-row", [2**30, 2**10]]}, {}, "The header says"),
        ({"w": ["int4-row", [-4, -4]]}, {}, "format and a shape"),
        ({"w": ["int4-row", [4.0, 4]]}, {}, "format and a shape"),
        ({"w": ["int4-row", [True, 4]]}, {}, "format and a shape"),
        ({"w": ["int4-row", "44"]}, {}, "format and a shape"),
        ({"w": ["int4-row"]}, {}, "format and a shape"),
        ({"w": "int4-row"}, {}, "format and a shape"),
        ({"w": [4, [4, 4]]}, {}, "format and a shape"),
        ({"w": ["int9-row", [4, 4]]}, {}, "9 bits"),
        ({"w": ["int4-tensor-s8", [4, 4]]}, {}, "gains nothing from 8 bits"),
        ({"w": ["int4", [4, 4]]}, {}, "canonical"),
        ({"w": ["int4-row", [0, 4]]}, {}, "no numbers"),
        ({"w": ["int4-row", [4, 4]], "w.codes": ["float32", [1]]}, {}, "two tensors named"),
        ({"w": ["int4-row-s8", [4, 4]], "w.step": ["float32", [1]]}, {}, "two tensors named"),
        ({"__metadata__": ["float32", [1]]}, {}, "two tensors named"),
        ({"w": ["float32", [1]]}, {"aliases": {"w": "w"}}, "alias"),
        ({"w": ["float32", [1]]}, {"aliases": {"v": "x"}}, "alias"),
        ({"w": ["float32", [1]]}, {"aliases": {"v": []}}, "alias"),
        ({"w": ["float32", [1]]}, {"aliases": []}, "fields"),
        ({"w": ["float32", [1]]}, {"quantizer": 7}, "fields"),
        ({"w": ["float32", [1]]}, {"version": 1}, "version"),
        ({"w": ["float32", [1]]}, {"by_columns": ["w"]}, "by columns"),
        ({"w": ["int10-row", [4, 4]]}, {"by_columns": ["w"]}, "by columns"),
        ({"w": ["int4-row", [4, 4]]}, {"by_columns": ["v"]}, "by columns"),
        ({"w": ["int4-row", [4, 4]]}, {"by_columns": [["w"]]}, "by columns"),
        ({"w": ["int4-row", [4, 4]]}, {"by_columns": "w"}, "by columns"),
        ({"w": ["int4-row", [4, 4]]}, {"by_columns": ["w", "w"]}, "canonical"),
        ({"w": ["int4-row", [4, 4]]}, {"by_columns": []}, "canonical"),
        ({"w": ["float32", [1]]}, {"surplus": 2}, "canonical"),
        ([], {}, "fields"),
    ],
)
def test_hostile_metadata(tmp_path, original, sites, more, message):
    forge(tmp_path, original, sites, **more)
    with pytest.raises(ArtifactError, match=message) as caught:
        artifact.read(tmp_path)
    assert str(tmp_path / "model.safetensors") in caught.value.problem
    assert caught.value.remedy


def test_a_header_that_does_not_follow_from_the_allocation(tmp_path, original):
    stored = list(stored_tensors(Format.parse("int4-row"), (4, 4), "w"))
    for wrong in ([("w.codes", "I8", (8,))], [("w.scales", "F16", (1, 4))], [("more", "U8", (1,))]):
        tensors = [tensor for tensor in stored if tensor[0] != wrong[0][0]] + wrong
        forge(tmp_path, original, {"w": ["int4-row", [4, 4]]}, tensors=tensors)
        with pytest.raises(ArtifactError, match="The header says"):
            artifact.read(tmp_path)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8,
        struct.pack("<Q", 10**9),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
        struct.pack("<Q", 6000) + b"9" * 6000,
        struct.pack("<Q", 20) + b'{"__metadata__":[3]}',
        struct.pack("<Q", 34) + b'{"__metadata__":{"qslm":"[[[[[["}}',
    ],
)
def test_hostile_starts_of_the_file(tmp_path, original, start):
    restore(tmp_path, original | {"model.safetensors": start})
    sign_again(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        artifact.read(tmp_path)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{", "[" * 100_000, '{"a":' * 50_000, "9" * 6000, '{"qslm": 3}', '{"qslm": {}}', "\ud800",
        '{"qslm": {"bytes": "5", "sha256": "x", "config_sha256": "y"}}', '{"x": NaN}', "{}",
    ],
)  # fmt: skip
def test_hostile_configs(tmp_path, original, text):
    restore(tmp_path, original)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ArtifactError, match=r"config\.json"):
        artifact.read(tmp_path)


@pytest.mark.parametrize("entry", [{"bytes": True}, {"bytes": 10**4000}, {"bytes": -1}, {"sha256": "A" * 64}])
def test_hostile_entries(tmp_path, original, entry):
    restore(tmp_path, original)
    config = json.loads(original["config.json"])
    config["qslm"] |= entry
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError):
        artifact.read(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["missing", "folder", "longer"])
def test_files_that_are_not_there_or_not_files(tmp_path, original, name, how):
    restore(tmp_path, original)
    if how == "longer":
        (tmp_path / name).write_bytes(original[name] + b"}")
    else:
        (tmp_path / name).unlink()
    if how == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(ArtifactError, match=name) as caught:
        artifact.read(tmp_path)
    assert caught.value.remedy


def test_a_tokenizer_that_does_not_belong(tmp_path):
    packed(tmp_path, tokenizer_json=None)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        artifact.read(tmp_path)


def test_what_is_an_artifact(tmp_path):
    assert not folders.is_artifact(tmp_path)
    assert not folders.is_artifact(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not folders.is_artifact(tmp_path)
    with pytest.raises(ArtifactError, match=r"nothing does not exist"):
        artifact.read(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="File name too long"):
        artifact.read(tmp_path / ("n" * 300))


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"qslm": 1}', b'{"qslm": {}}'])
def test_a_damaged_config_beside_a_packed_model_is_told_and_mended_by_writing_again(tmp_path, content):
    packed(tmp_path)
    whole = (tmp_path / "config.json").read_bytes()
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert folders.is_packed(tmp_path)
    for ask in (artifact.read, artifact.verify, read_config):
        with pytest.raises(ArtifactError, match=r"config\.json is (damaged|missing).* packed model of qslm") as caught:
            ask(tmp_path)
        assert ("missing" in caught.value.problem) == (content is None)
    packed(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == whole


def test_the_artifact_in_a_run_folder_is_named(tmp_path):
    packed(tmp_path / "artifact")
    with pytest.raises(ArtifactError) as caught:
        artifact.verify(tmp_path)
    assert caught.value.remedy == f"Give the packed model in it: {tmp_path / 'artifact'}."


def test_a_sign_site_survives(tmp_path):
    read = packed(tmp_path)
    assert read.quantized["emb.weight"].format == SIGN
    assert torch.equal(read.state_dict()["emb.weight"] >= 0, state()["emb.weight"] >= 0)
