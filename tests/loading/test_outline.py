"""The outline of a checkpoint is that of its network, and costs no PyTorch."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks.spikegpt import random_spikegpt
from safetensors.torch import save_file

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import ArtifactError, CheckpointError
from qslm.formats import Format
from qslm.loading.checkpoint import load_model
from qslm.loading.outline import anatomy_of, read_outline
from qslm.models.checkpoint import make_skeleton, shapes_of
from qslm.models.config import SpikeGPTConfig, tensor_shapes
from qslm.models.shapes import read_shapes
from qslm.quantizers import RoundedSites

SIZES = st.integers(1, 40)


@given(
    st.builds(
        SpikeGPTConfig,
        vocabulary_size=SIZES,
        width=SIZES,
        layers=st.integers(1, 12),
        ffn_width=SIZES,
        classes=st.none() | SIZES,
        binary_embedding=st.booleans(),
    )
)
def test_the_outline_is_the_anatomy_of_the_network(config):
    network = make_skeleton(config)
    assert anatomy_of(config) == find_anatomy(network)
    assert list(tensor_shapes(config).items()) == list(shapes_of(network.state_dict()).items())


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("kind", ["pth", "safetensors", "wrapped", "packed"])
def test_every_kind_of_checkpoint_has_the_outline_of_what_is_loaded(tmp_path, classes, kind):
    network = random_spikegpt(classes=classes)
    state = network.state_dict()
    if kind == "pth":
        torch.save(state, tmp_path / "model.pth")
    elif kind == "packed":
        allocation = Allocation.uniform(find_anatomy(network), Format("integer", 4))
        sites = RoundedSites(state, allocation)
        artifact.write(tmp_path, sites, allocation, config=network.config.to_dict())
    else:
        wrapped = {f"{'module.' * (kind == 'wrapped')}{name}": tensor for name, tensor in state.items()}
        save_file(wrapped, tmp_path / "model.safetensors")
    assert read_outline(tmp_path).anatomy == find_anatomy(load_model(tmp_path, binary_embedding="true"))


def test_a_real_embedding_is_told_or_read(tmp_path):
    save_file(random_spikegpt().state_dict(), tmp_path / "model.safetensors")
    assert read_outline(tmp_path).anatomy.sites[0].binarized
    assert not read_outline(tmp_path, "false").anatomy.sites[0].binarized
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "spikegpt", "binary_embedding": False}))
    assert not read_outline(tmp_path).anatomy.sites[0].binarized


@pytest.mark.parametrize("length", [0, 1, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file(random_spikegpt().state_dict(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_outline(path)


def test_other_networks_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a SpikeGPT"):
        read_outline(tmp_path)


@pytest.mark.parametrize("choice", ["TRUE", True, "False", False])
def test_an_embedding_is_told_in_any_case(tmp_path, choice):
    save_file(random_spikegpt().state_dict(), tmp_path / "model.safetensors")
    told = read_outline(tmp_path, choice).anatomy.sites[0].binarized
    assert (
        told == (str(choice).lower() == "true") == load_model(tmp_path, binary_embedding=choice).config.binary_embedding
    )


def test_an_unknown_choice_of_the_embedding_is_refused(tmp_path):
    save_file(random_spikegpt().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="binary_embedding is 'maybe'"):
        read_outline(tmp_path, "maybe")


def test_a_packed_model_that_was_cut_off_is_refused_by_name(tmp_path):
    network = random_spikegpt()
    allocation = Allocation.uniform(find_anatomy(network), Format("integer", 4))
    artifact.write(
        tmp_path, RoundedSites(network.state_dict(), allocation), allocation, config=network.config.to_dict()
    )
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"model\.safetensors has .* bytes, config\.json says"):
        read_outline(tmp_path)


# ---- a .pth file without PyTorch ----------------------------------------------------------------------------------

NAMES = st.dictionaries(st.text(min_size=1, max_size=12), st.lists(st.integers(0, 5), max_size=4), max_size=6)


@given(NAMES, st.booleans(), st.sampled_from(["", "state_dict", "model"]), st.sampled_from([2, 3, 4, 5]))
def test_shapes_are_read_as_pytorch_reads_them(tmp_path_factory, shapes, parameters, wrapper, protocol):
    path = tmp_path_factory.mktemp("pth") / "model.pth"
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state = {name: torch.nn.Parameter(value) if parameters else value for name, value in tensors.items()}
    torch.save({wrapper: state} if wrapper else state, path, pickle_protocol=protocol)
    found = read_shapes(path)
    assert found in (None, {name.removeprefix("module."): tuple(shape) for name, shape in shapes.items()})
    assert found is not None or protocol > 3


def test_a_state_dict_with_shared_and_half_tensors_is_read(tmp_path):
    network = random_spikegpt().half()
    state = network.state_dict()
    state["again"] = state["emb.weight"]
    torch.save(state, tmp_path / "model.pth")
    assert read_shapes(tmp_path / "model.pth") == shapes_of(state)


@pytest.mark.parametrize(
    "content", [{"a": 1}, [torch.zeros(2)], {1: torch.zeros(2)}, {"a": object}, {"a": torch.zeros(3).to_sparse()}, "a"]
)
def test_anything_but_tensors_is_left_to_pytorch(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    assert read_shapes(tmp_path / "model.pth") is None


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_damage_does_more_than_leave_it_to_pytorch(tmp_path_factory, noise, place):
    path = tmp_path_factory.mktemp("pth") / "model.pth"
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        pickle = archive.read("model/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle[:place] + noise + pickle[place + len(noise) :])
    found = read_shapes(path)
    assert found is None or all(isinstance(name, str) and isinstance(shape, tuple) for name, shape in found.items())


def test_nothing_in_a_pickle_is_called(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "called",))

    torch.save({"a": torch.zeros(2), "b": Hostile()}, tmp_path / "model.pth")
    assert read_shapes(tmp_path / "model.pth") is None
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("kind", ["shipped", "safetensors", "pth", "packed"])
def test_an_impossible_budget_is_refused_without_pytorch(tmp_path, kind):
    """It would take more than the second in which it is refused."""
    network = random_spikegpt()
    source = tmp_path / "source"
    source.mkdir()
    if kind == "pth":
        torch.save(network.state_dict(), source / "model.pth")
    elif kind == "safetensors":
        save_file(network.state_dict(), source / "model.safetensors")
    elif kind == "packed":
        allocation = Allocation.uniform(find_anatomy(network), Format("integer", 4))
        sites = RoundedSites(network.state_dict(), allocation)
        artifact.write(source, sites, allocation, config=network.config.to_dict())
    code = (
        "import sys; from qslm.cli.main import run; status = None\n"
        "try: run()\n"
        "except SystemExit as error: status = error.code\n"
        "print(status, 'torch' in sys.modules)"
    )
    named = "spikegpt-mini" if kind == "shipped" else str(source)
    words = ["search", named, "--task", "wikitext2", "--max-memory", "1B", "-o", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "The nearest possible budget is" in done.stderr
