"""The shipped model on other processors, under emulation (`native/tests/embedded.sh`): the same tokens and bits."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from networks.packing import pack

from qslm import _native
from qslm.data.tokenizer import encode
from qslm.loading.checkpoint import load_checkpoint
from qslm.runtime import Engine
from qslm.runtime.export import export, find_target

SCRIPT = Path(__file__).parents[2] / "native" / "tests" / "embedded.sh"
TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64", "arm-none-eabi-gcc", "qemu-system-arm")
BOARDS = ("mps2-an386", "mps2-an500")
TOKENS, PROMPT, SEED = 64, "The river runs", 7  # as there, and in native/examples/cortex_m/main.c


@pytest.fixture(scope="module")
def tools() -> None:
    """Compilers and emulators; without them a test is skipped and says so, but under CI it fails."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return
    reason = f"needs Debian's gcc-aarch64-linux-gnu, qemu-user, gcc-arm-none-eabi, qemu-system-arm: no {missing[0]}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def digest_of(digest: int, logits: np.ndarray) -> int:
    """FNV-1a of the bits of logits."""
    for bits in logits.view(np.uint32).tolist():
        digest = (digest ^ bits) * 0x100000001B3 % 2**64
    return digest


def generated(engine: Engine, ids: list[int], temperature: float, top_p: float, random: int) -> tuple[list[int], int]:
    """The tokens that follow `ids`, and the digest of all logits."""
    engine.reset()
    logits, made, digest = engine.advance(ids), [], 0xCBF29CE484222325
    for _ in range(TOKENS):
        digest = digest_of(digest, logits)
        token, random = _native.draw(logits, temperature, top_p, random)
        made.append(token)
        logits = engine.advance([token])
    return made, digest_of(digest, logits)


def test_every_target_gives_the_tokens_and_bits_of_this_machine(tools, tmp_path):
    checkpoint = load_checkpoint("spikegpt-mini")
    folder = pack(checkpoint.model, tmp_path / "packed", tokenizer_json=checkpoint.tokenizer.to_str())
    found = export(folder, tmp_path / "export", find_target("mps2-an386"))
    ran = subprocess.run(["sh", str(SCRIPT), str(tmp_path / "export")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout)
    lines = {line.split(maxsplit=1)[0]: line.split()[1:] for line in ran.stdout.splitlines() if "logits" not in line}
    digests = dict(re.findall(r"^(\w+) logits ([0-9a-f]+)$", ran.stdout, re.M))
    engine = Engine(folder)
    ids = encode(checkpoint.tokenizer, PROMPT).tolist()
    assert [int(one) for one in lines["prompt"]] == ids
    for name, settings in {"likeliest": (0.0, 1.0, 0), "drawn": (0.8, 0.95, SEED)}.items():
        made, digest = generated(engine, ids, *settings)
        assert [int(one) for one in lines[name]] == made and len(made) == TOKENS
        assert int(digests[name], 16) == digest
    reports = re.findall(
        r"^([\w-]+): the same \d+ tokens and logits; flash (\d+) .*, RAM (\d+) bytes", ran.stdout, re.M
    )
    assert [board for board, _, _ in reports] == list(BOARDS)
    assert all(found.image_bytes < int(flash) <= found.flash and int(ram) <= found.ram for _, flash, ram in reports)
