"""llama2.c's format: the network is that of the file, and what is no such file is refused."""

import struct
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qslm.errors import CheckpointError

FOLDER = Path(__file__).parents[2] / "benchmarks"
SIZES = {"width": 16, "inner_width": 20, "layers": 2, "heads": 4, "key_heads": 2, "vocabulary": 11, "context": 9}
TOLD = (  # the first words that llama2.c's own test expects of stories260K without chance
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)


@pytest.fixture(scope="module")
def llama2c():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import llama2c

        yield llama2c


@pytest.fixture
def written(llama2c, tmp_path):
    """Writes a random network of these sizes, whose name is that of the file."""

    def write(tied=True, **sizes):
        numbers = {**SIZES, **sizes}
        header = llama2c.Header(**numbers, tied=tied)
        generator = np.random.default_rng(0)
        payload = generator.normal(size=(header.file_bytes - 28) // 4).astype("<f4")
        numbers["vocabulary"] *= 1 if tied else -1
        path = tmp_path / "network.bin"
        path.write_bytes(struct.pack("<7i", *numbers.values()) + payload.tobytes())
        return path

    return write


def plain_logits(header, tensors, ids):
    """The forward pass of run.c: ids (tokens,), logits (tokens, vocabulary); neighbouring outputs are rotated."""

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    tokens, size = len(ids), header.head_size
    angles = torch.arange(tokens)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotated(x):
        pairs = torch.view_as_complex(x.reshape(tokens, -1, size // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn).reshape(tokens, -1, size)

    x = tensors["embedding"][ids]
    future = torch.ones(tokens, tokens).triu(1).bool()
    for layer in range(header.layers):
        part = {name: tensor[layer] for name, tensor in tensors.items() if len(tensor) == header.layers}
        y = norm(x, part["rms_att"])
        q, k = rotated(y @ part["wq"].T), rotated(y @ part["wk"].T)
        v = (y @ part["wv"].T).view(tokens, -1, size)
        k, v = (one.repeat_interleave(header.heads // header.key_heads, 1) for one in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / size**0.5
        seen = torch.einsum("hts,shd->thd", scores.masked_fill(future, -torch.inf).softmax(-1), v)
        x = x + seen.reshape(tokens, -1) @ part["wo"].T
        y = norm(x, part["rms_ffn"])
        x = x + (torch.nn.functional.silu(y @ part["w1"].T) * (y @ part["w3"].T)) @ part["w2"].T
    return norm(x, tensors["rms_final"]) @ tensors.get("classifier", tensors["embedding"]).T


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_network_computes_what_llama2c_does(llama2c, written, tied, key_heads):
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    path = written(tied, key_heads=key_heads, layers=3)
    before = torch.random.get_rng_state()
    network = llama2c.load(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (network.lm_head.weight is network.model.embed_tokens.weight) == tied
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    with torch.no_grad():
        found = network(input_ids=ids[None]).logits[0]
    expected = plain_logits(*llama2c.read(path), ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_stories260k_tells_what_llama2c_says_it_tells(llama2c, data_folder):
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    folder = data_folder / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"needs stories260K, which {data_folder} has not")
    network, pieces = llama2c.load(folder / "stories260K.bin"), vocabulary(folder / "tok512.bin")
    ids = torch.tensor([[1]])
    with torch.inference_mode():
        for _ in range(100):
            ids = torch.cat((ids, network(input_ids=ids).logits[:, -1:].argmax(-1)), dim=1)
    assert b"".join(pieces[index] for index in ids[0, 1:]).decode().lstrip().startswith(TOLD)


def vocabulary(path):
    """The pieces of llama2.c's tokenizer file: the longest length, then score, length and bytes of each."""
    raw, place, pieces = path.read_bytes(), 4, []
    while place < len(raw):
        _, length = struct.unpack_from("<fi", raw, place)
        pieces.append(raw[place + 8 : place + 8 + length])
        place += 8 + length
    return pieces


def test_the_tensors_lie_one_after_the_other(llama2c, written):
    path = written(tied=False)
    header, tensors = llama2c.read(path)
    assert list(tensors) == list(header.shapes) and tensors["wk"].shape == (2, 8, 16)
    joined = torch.cat([tensor.flatten() for tensor in tensors.values()]).numpy()
    assert path.read_bytes()[28:] == joined.astype("<f4").tobytes()


@pytest.mark.parametrize("change", [-29, -5, -4, -1, 1, 4])
def test_another_size_than_the_header_says_is_refused(llama2c, written, change):
    path = written()
    raw = path.read_bytes()
    path.write_bytes(raw[:change] if change < 0 else raw + bytes(change))
    with pytest.raises(CheckpointError, match=rf"network.bin: It has {len(raw) + change:,} bytes.*says {len(raw):,}"):
        llama2c.read(path)


@pytest.mark.parametrize("kept", [0, 4, 27])
def test_a_file_that_ends_within_its_header_is_refused(llama2c, written, kept):
    path = written()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=f"ends after {kept} bytes"):
        llama2c.read(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 18), ("width", 0), ("heads", -4), ("heads", 5), ("key_heads", 3), ("key_heads", 0), ("vocabulary", 0)],
)
def test_a_header_of_no_network_is_refused(llama2c, written, field, value):
    path = written()
    numbers = {**SIZES, field: value}
    path.write_bytes(struct.pack("<7i", *numbers.values()) + path.read_bytes()[28:])
    with pytest.raises(CheckpointError, match="there is no such Llama"):
        llama2c.read(path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(llama2c, written, number):
    path = written()
    raw = bytearray(path.read_bytes())
    place = 28 + 4 * prod(llama2c.read(path)[0].shapes["embedding"])
    raw[place : place + 4] = struct.pack("<f", number)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="rms_att has numbers that are not finite"):
        llama2c.read(path)


def test_what_is_no_file_is_refused(llama2c, tmp_path):
    for path in (tmp_path, tmp_path / "none.bin"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            llama2c.read(path)


NUMBERS = st.lists(st.integers(1, 4) | st.integers(-(2**31), 2**31 - 1), min_size=7, max_size=7)


@given(numbers=NUMBERS, rest=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(llama2c, tmp_path_factory, numbers, rest):
    raw = struct.pack("<7i", *numbers) + rest
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(raw)
    try:
        header, _ = llama2c.read(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert header.file_bytes == len(raw)
