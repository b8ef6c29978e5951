"""The outline of a checkpoint is that of its network, and costs no PyTorch."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks.spikegpt import random_spikegpt
from safetensors.torch import save_file

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import CheckpointError
from qslm.formats import Format
from qslm.loading.checkpoint import load_model
from qslm.loading.outline import outline, read_anatomy, read_sizes
from qslm.models.checkpoint import make_skeleton, shapes_of
from qslm.models.config import SpikeGPTConfig, tensor_shapes
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
    assert outline(config) == find_anatomy(network)
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
    assert read_anatomy(tmp_path) == find_anatomy(load_model(tmp_path, binary_embedding="true"))


def test_a_real_embedding_is_told_or_read(tmp_path):
    save_file(random_spikegpt().state_dict(), tmp_path / "model.safetensors")
    assert read_anatomy(tmp_path).sites[0].binarized
    assert not read_anatomy(tmp_path, "false").sites[0].binarized
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "spikegpt", "binary_embedding": False}))
    assert not read_anatomy(tmp_path).sites[0].binarized


@pytest.mark.parametrize("length", [0, 1, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file(random_spikegpt().state_dict(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_sizes(path)


def test_other_networks_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a SpikeGPT"):
        read_sizes(tmp_path)


def test_an_impossible_budget_is_refused_without_pytorch(tmp_path):
    """It would take more than the second in which it is refused."""
    code = (
        "import sys; from qslm.cli.main import run; status = None\n"
        "try: run()\n"
        "except SystemExit as error: status = error.code\n"
        "print(status, 'torch' in sys.modules)"
    )
    words = ["search", "spikegpt-mini", "--task", "wikitext2", "--max-memory", "1B", "-o", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "The nearest possible budget is" in done.stderr
