"""Reading checkpoint files: published key names, and files that are damaged, hostile or not what they say."""

import hashlib
import json
import os
import pickle
import re
import struct
import zipfile

import pytest
import torch
from networks.spikegpt import random_ids, random_spikegpt
from safetensors.torch import save_file

from qslm.errors import CheckpointError
from qslm.models.checkpoint import load_spikegpt, read_state, shapes_of
from qslm.models.config import infer_config


@pytest.fixture(scope="module")
def network():
    return random_spikegpt(31, 12, 2, 20)


@pytest.fixture
def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def save(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def load(path, config=None):
    return load_spikegpt(read_state(path), config, origin=path.name)


SUFFIXES = [".pth", ".pt", ".bin", ".safetensors"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_checkpoint_comes_back_bit_for_bit(suffix, network, state, tmp_path):
    model = load(save(state, tmp_path / f"m{suffix}"))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    found = model.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    assert model.config.to_dict() == {**network.config.to_dict(), "context_length": 1024}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_types_become_float32(dtype, network, state, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    model = load(save(state, tmp_path / "m.pth"))
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_changing_a_loaded_model_never_changes_its_file(suffix, dtype, state, tmp_path):
    path = save({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / f"m{suffix}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = load(path)
    for tensor in read_state(path).values():
        tensor.zero_()
    for parameter in model.parameters():
        parameter.fill_(7)
    del model, parameter, tensor
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert torch.equal(load(path).head.weight, state["head.weight"].to(dtype).float())


def test_old_style_pickles_are_read(state, tmp_path):
    torch.save(state, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "m.pth").head.weight, state["head.weight"])


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_may_stand_inside_a_training_state(key, state, tmp_path):
    torch.save({key: state, "step": 3}, tmp_path / "m.pth")
    assert torch.equal(load(tmp_path / "m.pth").head.weight, state["head.weight"])


def test_data_parallel_prefix_is_taken_off(network, state, tmp_path):
    wrapped = torch.nn.DataParallel(network)
    torch.save(wrapped.state_dict(), tmp_path / "m.pth")
    ids = random_ids(network, 2, 9)
    assert torch.equal(load(tmp_path / "m.pth")(ids), network(ids))


def test_two_keys_that_differ_by_the_prefix_alone_are_refused(state, tmp_path):
    state["module.emb.weight"] = state["emb.weight"] + 1
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="twice"):
        load(tmp_path / "m.pth")


def test_classifier_drops_the_language_model_head(state, tmp_path):
    torch.save(state | {"classifier.weight": torch.ones(2, 12)}, tmp_path / "m.pth")
    model = load(tmp_path / "m.pth")
    assert model.config.classes == 2 and "head.weight" not in model.state_dict()
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 2)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "old", "plain pickle"])
def test_a_payload_is_refused_and_not_run(kind, state, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "m.pth"
    hostile = {**state, "emb.weight": Payload(marker)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match="weights alone") as caught:
        read_state(path)
    assert not marker.exists()
    assert "weights_only" not in str(caught.value)  # no advice to switch the protection off


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused(suffix, state, tmp_path):
    path = save(state, tmp_path / f"m{suffix}")
    content = path.read_bytes()
    lengths = {0, 1, 7, 8, 9, 100, len(content) - 1, *range(0, len(content), len(content) // 25)}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as caught:
            load(path)
        problem = caught.value.problem
        assert str(path) in problem and re.search(r"[a-z)]\.$", problem), problem
        assert "miniz" not in problem and (length or "is empty" in problem)
    if suffix == ".pth":
        assert f"its {len(content) - 1:,} bytes start an archive that has no end" in problem


def test_flipped_bytes_end_in_a_model_or_in_our_error(state, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for suffix in (".pth", ".safetensors"):
        path = save(state, tmp_path / f"m{suffix}")
        content = path.read_bytes()
        for place in torch.randint(len(content), (60,), generator=generator).tolist():
            damaged = bytearray(content)
            damaged[place] ^= 0xFF
            path.write_bytes(damaged)
            try:
                model = load(path)
            except CheckpointError as error:
                assert error.problem and error.remedy
                continue
            changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])]
            assert len(changed) <= 1, (suffix, place, changed)  # a byte belongs to one tensor, or to none


def test_a_compressed_archive_is_refused_or_read_right(state, tmp_path):
    torch.save(state, tmp_path / "m.pth")
    with (
        zipfile.ZipFile(tmp_path / "m.pth") as source,
        zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in source.namelist():
            out.writestr(name, source.read(name))
    try:
        model = load(tmp_path / "c.pth")
    except CheckpointError:
        return
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "content", [[1, 2], "text", 3, None, {1: torch.zeros(2)}, {"emb.weight": [1.0]}, {"a": {"b": 1}}, torch.zeros(3)]
)
def test_other_objects_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError):
        load(tmp_path / "m.pth")


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        read_state(tmp_path / "none.pth")
    for name in ("m.pth", "m.safetensors"):
        for content in (b"", b"PK\x03\x04", b"\x00" * 64, os.urandom(300), b"{}"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(CheckpointError):
                read_state(tmp_path / name)


def test_strided_views_are_read_and_overlapping_ones_refused(state, tmp_path):
    vocabulary, width = state["emb.weight"].shape
    padded = torch.randn(vocabulary * width + 50)  # a storage with room for every value and more
    for view in (padded[:-50].view(width, vocabulary).T, padded[50:].view(vocabulary, width)):
        torch.save(state | {"emb.weight": view}, tmp_path / "m.pth")
        assert torch.equal(load(tmp_path / "m.pth").emb.weight, view)
    for strides in ((1, 1), (0, 1), (width - 1, 1), (2, 2)):
        view = padded.as_strided((vocabulary, width), strides)
        torch.save(state | {"emb.weight": view}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match="not stored in full"):
            load(tmp_path / "m.pth")


def test_a_shape_beyond_the_storage_is_refused(state, tmp_path):
    for huge in (torch.zeros(1).expand(1 << 40, 12), torch.zeros(1, 12).expand(31, 12)):
        torch.save(state | {"emb.weight": huge}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match="not stored in full"):
            load(tmp_path / "m.pth")


def test_sparse_and_meta_tensors_are_refused(state, tmp_path):
    for other in (torch.eye(31)[:, :12].to_sparse(), torch.empty(31, 12, device="meta")):
        torch.save(state | {"emb.weight": other}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError):
            load(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("head.weight", None, "missing: head.weight"),
        ("emb.weight", None, "emb.weight"),
        ("blocks.1.ffn.key.weight", None, "missing: blocks.1.ffn.key.weight"),
        ("blocks.0.att.extra", torch.zeros(2), "unknown: blocks.0.att.extra"),
        ("blocks.7.ln1.weight", torch.ones(12), "missing: blocks.2"),
        ("head.weight", torch.zeros(31, 13), r"wrong shape: head.weight \(31, 13\) for \(31, 12\)"),
        ("emb.weight", torch.zeros(12), "not a matrix"),
        ("emb.weight", torch.zeros(0, 12), "vocabulary_size"),
        ("blocks.0.ffn.key.weight", torch.tensor(1.0), "not a matrix"),
        ("ln_out.bias", torch.zeros(12, dtype=torch.int64), "not of floating point: ln_out.bias"),
        ("ln_out.bias", torch.zeros(12, dtype=torch.complex64), "not of floating point: ln_out.bias"),
        ("ln_out.bias", torch.full((12,), float("nan")), r"ln_out.bias holds NaN or infinity \(12 values"),
        ("ln_out.bias", torch.full((12,), 1e300, dtype=torch.float64), "ln_out.bias holds NaN or infinity"),
    ],
)
def test_wrong_tensors_are_named(name, change, message, state, tmp_path):
    if change is None:
        del state[name]
    else:
        state[name] = change
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.pth")


def safetensors_bytes(header, data=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 60) + b"{}",
        safetensors_bytes(b"not json"),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),  # no data
        safetensors_bytes({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\0" * 12),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_bytes({"a": {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_bytes({}),
    ],
)
def test_safetensors_headers_that_lie_are_refused(content, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(tmp_path / "m.safetensors")


def test_config_adds_what_tensors_do_not_tell(state):
    config = infer_config(shapes_of(state), {"context_length": 77, "binary_embedding": False, "layers": 2}, "m")
    assert (config.context_length, config.binary_embedding, config.layers) == (77, False, 2)


@pytest.mark.parametrize("claim", [{"layers": 3}, {"width": 13}, {"vocabulary_size": 9}, {"classes": 2}], ids=str)
def test_config_that_contradicts_the_tensors_is_refused(claim, state):
    (name, value), *_ = claim.items()
    with pytest.raises(CheckpointError, match=f"config.json says {name} = {value}"):
        infer_config(shapes_of(state), claim, "m")


@pytest.mark.parametrize("claim", [{"context_length": 0}, {"context_length": "x"}, {"binary_embedding": 1}], ids=str)
def test_unusable_config_values_are_refused(claim, state):
    with pytest.raises(CheckpointError, match="does not describe"):
        infer_config(shapes_of(state), claim, "m")
