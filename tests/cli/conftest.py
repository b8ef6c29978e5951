import pytest
import torch
from typer.testing import CliRunner

from qslm.cli.main import app
from qslm.data.tokenizer import train_tokenizer
from qslm.models.config import SpikeGPTConfig
from qslm.models.spikegpt import SpikeGPT

TEXT = "the river runs slowly past a small town and the people there like the water very much"


def text_of(count: int, seed: int = 0) -> str:
    """`count` words drawn from TEXT, twelve a line."""
    known = TEXT.split()
    drawn = torch.randint(len(known), (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    words = [known[i] for i in drawn]
    return "\n".join(" ".join(words[i : i + 12]) for i in range(0, count, 12)) + "\n"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a tiny language model with a tokenizer: 2 blocks, 16 wide, 300 words, random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer(text_of(2000).splitlines(keepends=True), 300)
    torch.save(_state(SpikeGPTConfig(300, 16, 2, 32, 32)), folder / "model.pth")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def classifier(checkpoint, tmp_path_factory):
    """The folder of a tiny classifier of two classes, with the same tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-classifier")
    torch.save(_state(SpikeGPTConfig(300, 16, 2, 32, 32, 2)), folder / "model.pth")
    (folder / "tokenizer.json").write_text((checkpoint / "tokenizer.json").read_text())
    return folder


def _state(config: SpikeGPTConfig) -> dict[str, torch.Tensor]:
    model = SpikeGPT(config)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return model.state_dict()


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text file of 3,000 words."""
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text(text_of(3000, seed=1))
    return path


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A file of 40 labelled sentences."""
    path = tmp_path_factory.mktemp("table") / "own.tsv"
    lines = [f"{line}\t{i % 2}" for i, line in enumerate(text_of(480, seed=2).splitlines())]
    path.write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def call():
    """Run the command line in this process; the result has `exit_code`, `stdout` and `stderr`."""
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


@pytest.fixture
def refused(call):
    """Run what must fail: status 2, one message on stderr, no traceback, nothing on stdout. Returns stderr."""

    def run(*words):
        result = call(*words)
        assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr, result.exception)
        assert result.stderr.count("qslm: error:") == 1, result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        return result.stderr

    return run
