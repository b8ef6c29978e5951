"""The image for a device: its files byte for byte, a header that a C compiler reads, and room that is counted."""

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.packing import pack
from networks.spikegpt import random_spikegpt

from qslm import artifact, folders
from qslm.errors import ArtifactError, QslmError
from qslm.runtime import Engine
from qslm.runtime.export import LINE, TARGETS, Target, check_room, describe, export, find_target, header_of, image_of

NATIVE = Path(__file__).parents[2] / "native"
FILES = {"FILE": "model.safetensors", "CONFIG": "config.json", "TOKENIZER": "tokenizer.json"}
NEEDS = {"vocabulary": 9, "classes": 0, "memory_bytes": 1000, "tokenizer_bytes": 200, "state_bytes": 50}


@pytest.fixture
def packed(tmp_path, small_tokenizer):
    model = random_spikegpt(vocabulary=small_tokenizer.get_vocab_size(), width=48, layers=2, ffn_width=96)
    return pack(model, tmp_path / "packed", tokenizer_json=small_tokenizer.to_str())


def constants(header: str) -> dict[str, int | str]:
    """What a header defines, numbers and texts."""
    found = re.findall(r'^#define (MODEL_\w+) (?:(\d+)|"(\w+)")', header, re.M)
    return {name: int(number) if number else text for name, number, text in found}


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3))
def test_ranges_of_the_image_give_back_the_files(contents):
    files = list(zip(FILES.values(), contents, strict=False))
    found = describe(TARGETS["generic"], files, **NEEDS)
    image, defined = image_of(found.parts, files), constants(header_of(found).decode())
    assert len(image) == found.image_bytes == defined["MODEL_IMAGE_SIZE"] and len(image) % LINE == 0
    covered = bytearray(image)
    for name, (_, content) in zip(FILES, files, strict=False):
        offset, size = defined[f"MODEL_{name}_OFFSET"], defined[f"MODEL_{name}_SIZE"]
        assert offset % LINE == 0 and image[offset : offset + size] == content
        assert hashlib.sha256(content).hexdigest() == defined[f"MODEL_{name}_SHA256"]
        covered[offset : offset + size] = bytes(size)
    assert not any(covered)


def test_an_export_is_the_files_of_the_model_and_says_what_they_take(tmp_path, packed):
    found = export(packed, tmp_path / "export", find_target("mps2-an386"))
    image, defined = (tmp_path / "export/model.bin").read_bytes(), constants((tmp_path / "export/model.h").read_text())
    for name, file in FILES.items():
        offset, size = defined[f"MODEL_{name}_OFFSET"], defined[f"MODEL_{name}_SIZE"]
        assert image[offset : offset + size] == (packed / file).read_bytes()
    engine = Engine(packed, threads=1, chunk=1)
    assert defined["MODEL_STATE_BYTES"] == found.state_bytes == len(engine.save())
    assert defined["MODEL_MEMORY"] == found.memory_bytes >= engine.memory_bytes
    assert defined["MODEL_VOCABULARY"] == engine.vocabulary_size and defined["MODEL_CLASSES"] == 0
    assert found.flash > len(image) and found.ram > found.memory_bytes + found.tokenizer_bytes > 0


def test_what_loading_takes_is_not_far_from_what_it_uses(tmp_path):
    model = random_spikegpt(vocabulary=61, width=128, layers=4, ffn_width=512)
    engine = Engine(pack(model, tmp_path), threads=1, chunk=1)
    assert engine.memory_bytes <= engine.arena_bytes < 1.5 * engine.memory_bytes


@pytest.mark.parametrize("classes", [None, 3])
def test_the_header_compiles_as_c_and_as_cpp(tmp_path, classes):
    model = random_spikegpt(vocabulary=61, width=32, layers=1, classes=classes)
    export(pack(model, tmp_path / "packed"), tmp_path / "export")
    assert constants((tmp_path / "export/model.h").read_text())["MODEL_CLASSES"] == (classes or 0)
    (tmp_path / "main.c").write_text(
        '#include "model.h"\n#include "model.h"\n'
        "int main(void) { return model_file(model_image).size + model_config(model_image).size == 0; }\n"
    )
    for language in ("c", "c++"):
        words = [
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsyntax-only",
            f"-I{NATIVE}",
            f"-I{tmp_path / 'export'}",
            "-x",
            language,
        ]
        subprocess.run(["cc", *words, str(tmp_path / "main.c")], check=True)


def test_the_ten_lines_are_those_of_the_example():
    code = re.compile(r"^(?://)?\s*((?:static|qslm_|if|int32_t|for|token|#include \"model).*[;{\"])(?: //.*)?$", re.M)
    example = code.findall((NATIVE / "examples/ten_lines.c").read_text())
    shown = code.findall((NATIVE / "qslm.h").read_text().partition("#ifndef")[0])
    (readme,) = re.findall(r"^```c\n(.*?)^```$", (NATIVE.parent / "README.md").read_text(), re.M | re.S)
    assert len(shown) == 11 and shown[1:] == code.findall(readme)
    assert [line for line in shown if line not in example] == ["static uint8_t memory[MODEL_MEMORY];"]


def test_an_export_is_replaced_and_nothing_else_is(tmp_path, packed):
    export(packed, tmp_path / "export")
    before = sorted(file.name for file in (tmp_path / "export").iterdir())
    export(packed, tmp_path / "export")
    assert (
        sorted(file.name for file in (tmp_path / "export").iterdir()) == before == ["model.S", "model.bin", "model.h"]
    )
    with pytest.raises(QslmError, match="packed model"):
        export(packed, packed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model.bin").write_bytes(b"weights")
    with pytest.raises(QslmError, match="checkpoint"):
        export(packed, tmp_path / "other")
    assert folders.contents(tmp_path / "export").kind == "export"


@pytest.mark.parametrize(("kind", "told"), [("flash", "flash"), ("ram", "RAM")])
def test_a_target_that_is_too_small_is_refused_with_numbers(tmp_path, packed, kind, told):
    found = export(packed, tmp_path / "export")
    shutil.rmtree(tmp_path / "export")
    size = getattr(found, kind)
    check_room(replace(found, target=Target("board", "one", **{kind: size})))
    with pytest.raises(QslmError, match=f"board has {size - 1:,} bytes of {told}, the model needs {size:,}"):
        export(packed, tmp_path / "export", Target("board", "one", **{kind: size - 1}))
    assert not (tmp_path / "export").exists()


def test_a_model_that_is_damaged_or_altered_is_refused(tmp_path, packed):
    for name in FILES.values():
        folder = shutil.copytree(packed, tmp_path / f"damaged-{name}")
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ArtifactError):
            export(folder, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_tokenizer_that_the_engine_does_not_read_is_refused(tmp_path, small_tokenizer):
    model = random_spikegpt(vocabulary=61, width=32, layers=1)
    words = json.loads(small_tokenizer.to_str())
    words["model"]["byte_fallback"] = True
    folder = pack(model, tmp_path / "packed", tokenizer_json=json.dumps(words))
    assert artifact.verify(folder)
    with pytest.raises(ArtifactError, match="byte_fallback"):
        export(folder, tmp_path / "export")


def test_a_target_that_is_not_known_is_refused():
    with pytest.raises(QslmError, match="no target 'toaster'") as caught:
        find_target("toaster")
    assert all(name in caught.value.remedy for name in TARGETS)
