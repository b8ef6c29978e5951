"""The README's own commands, run as they stand."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from qslm.cli.main import VERBS, app
from qslm.data.tokenizer import train_tokenizer
from qslm.models.config import SpikeGPTConfig
from qslm.training.initialize import new_spikegpt

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = "the river ran under an old stone bridge and the mill turned slowly in the evening light"
WORDS = TEXT.split()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, "" for none."""
    return [text for found, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S) if found == language]


def commands() -> list[str]:
    return [line for block in blocks("") for line in block.splitlines() if line.startswith("qslm ")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the README's commands name, small enough for a test."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(len(WORDS), (3000,), generator=generator).tolist()
    text = " ".join(WORDS[i] for i in chosen)
    Path("my.txt").write_text("\n".join(text[i : i + 200] for i in range(0, len(text), 200)), encoding="utf-8")
    tokenizer = train_tokenizer([text], 300)
    Path("tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = SpikeGPTConfig(tokenizer.get_vocab_size(), width=32, layers=2, ffn_width=64)
    torch.save(new_spikegpt(config, seed=1).state_dict(), "my.pth")
    return tmp_path


def test_the_commands_run(workplace):
    assert len(commands()) >= 5
    for command in commands():
        arguments = shlex.split(command.replace("--max-memory 30MB", "--max-memory 60%"))[1:]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (command, result.output)


def test_the_python_example_runs(workplace, capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    saving, conclusion = capsys.readouterr().out.split(maxsplit=1)
    assert 0.5 < float(saving) < 1
    assert conclusion.strip() in ("met", "not shown", "broken")


def test_every_verb_is_named():
    for verb in VERBS:
        assert f"qslm {verb}" in README, verb


@pytest.mark.parametrize(
    "page", ["README.md", "benchmarks/README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
)
def test_every_file_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = [(ROOT / page).parent / path for path in re.findall(r"\]\(([^)#:]+)\)", text)]
    named = [ROOT / path for path in re.findall(r"\b(?:benchmarks|docs|src)/[\w/.-]*\w\.\w+", text)]
    assert linked or named
    assert [str(path) for path in (*linked, *named) if not path.exists()] == []


def test_no_place_is_left_open():
    assert not re.findall(r"^\s*(?:DEMO|STUDIES|CARDS|TRAINING|FULLSIZE)$", README, re.M)
