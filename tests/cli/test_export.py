import json
import shutil

import pytest
from networks.packing import pack
from networks.spikegpt import random_spikegpt


@pytest.fixture
def packed(tmp_path, small_tokenizer):
    model = random_spikegpt(vocabulary=small_tokenizer.get_vocab_size(), width=32, layers=2)
    return pack(model, tmp_path / "packed", tokenizer_json=small_tokenizer.to_str())


def test_export_prints_what_is_needed_beside_what_there_is(call, packed, tmp_path):
    result = call("export", packed, "--target", "mps2-an386", "-o", tmp_path / "export")
    assert result.exit_code == 0, result.stderr
    for word in ("flash", "RAM", "mps2-an386 has", "4.19 MB (4.00 MiB)", "Cortex-M4", "the tokenizer"):
        assert word in result.stdout
    assert sorted(file.name for file in (tmp_path / "export").iterdir()) == ["model.S", "model.bin", "model.h"]


def test_export_as_json(call, packed, tmp_path):
    found = json.loads(call("export", packed, "-o", tmp_path / "export", "--json").stdout)
    assert found["target"] == {
        "name": "generic", "about": "any machine with a C11 compiler", "flash": None, "ram": None
    }  # fmt: skip
    assert [part["file"] for part in found["parts"]] == ["model.safetensors", "config.json", "tokenizer.json"]
    assert found["image_bytes"] == (tmp_path / "export/model.bin").stat().st_size
    assert found["flash"] > found["image_bytes"] and found["ram"] > found["memory_bytes"] > found["state_bytes"] > 0


def test_what_does_not_fit_is_refused_and_nothing_is_written(refused, tmp_path):
    large = pack(random_spikegpt(vocabulary=61, width=512, layers=1, ffn_width=4096), tmp_path / "large", "int8-row")
    told = refused("export", large, "--target", "mps2-an500", "-o", tmp_path / "export")
    assert "mps2-an500 has 4,194,304 bytes of flash, the model needs" in told and "--max-memory" in told
    assert not (tmp_path / "export").exists()


def test_bad_requests_are_refused(refused, packed, tmp_path):
    output = tmp_path / "export"
    assert "no target 'toaster'" in refused("export", packed, "--target", "toaster", "-o", output)
    assert "does not exist" in refused("export", tmp_path / "nothere", "-o", output)
    assert "is the folder of a packed model" in refused("export", packed, "-o", packed)
    assert "The name of the output folder is empty" in refused("export", packed, "-o", "")
    shutil.copytree(packed, tmp_path / "altered")
    (tmp_path / "altered/tokenizer.json").write_text("{}")
    assert "not as it was written" in refused("export", tmp_path / "altered", "-o", output)
    (tmp_path / "file").write_text("")
    assert "file" in refused("export", packed, "-o", tmp_path / "file" / "below")
    assert not output.exists()
