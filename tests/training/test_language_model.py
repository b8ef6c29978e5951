"""Training of a language model: it learns, it goes on where it was killed, it keeps out of global state."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from qslm.errors import QslmError, TrainingError
from qslm.loading.checkpoint import load_checkpoint
from qslm.training import LanguageModelSettings, train_lm
from qslm.training.language_model import windows_of_step

STEPS = 120


@pytest.fixture
def settings(tiny_data, tmp_path):
    return LanguageModelSettings(
        tmp_path / "run",
        tiny_data,
        width=16,
        layers=1,
        vocabulary=280,
        context=16,
        batch=4,
        tokens=STEPS * 4 * 16,
        warmup_steps=10,
        peak_rate=1e-2,
    )


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """The folder of an uninterrupted training with the settings above."""
    output = tmp_path_factory.mktemp("finished") / "run"
    torch.set_num_threads(1)
    settings = LanguageModelSettings(output, tiny_data, 16, 1, 280, 16, 4, STEPS * 4 * 16, 1e-2, 10)
    return train_lm(settings)


def test_checkpoint_is_complete_and_the_loss_fell(finished):
    checkpoint = load_checkpoint(finished)
    assert checkpoint.tokenizer.get_vocab_size() == checkpoint.model.config.vocabulary_size
    assert checkpoint.model.config.context_length == 16 and checkpoint.model.config.binary_embedding
    assert all(tensor.dtype == torch.float16 for tensor in load_file(finished / "model.safetensors").values())
    record = json.loads((finished / "training.json").read_text())
    losses = [loss for _, loss in record["history"]["training"]]
    assert [step for step, _ in record["history"]["training"]] == [50, 100, 120]
    assert losses[-1] < losses[0] - 0.5 and record["history"]["validation"][-1][1] < losses[0]
    assert record["command"] == (
        "qslm train lm -o run --width 16 --layers 1 --vocabulary 280 --context 16 --batch 4 --tokens 7680 --rate 0.01 "
        "--warmup-steps 10"
    )
    assert record["text"] == "WikiText-2" and record["splits"]["training tokens"] > 1000
    assert record["splits"]["validation tokens"] % 16 == 0 and record["settings"]["seed"] == 0
    assert record["torch"] == torch.__version__ and record["threads"] == 1
    assert len(record["rates"]) == 1 and 0 <= record["rates"][0]["attention"] <= 1
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("step", [0, 30, 50, 77, 119])
def test_killed_training_ends_with_the_same_bits(step, settings, finished, killed_at):
    killed_at(step, train_lm, settings)
    resumed = train_lm(settings)
    assert (resumed / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    one, other = (torch.load(folder / "training.pt", weights_only=True) for folder in (resumed, finished))
    assert one["step"] == other["step"] == STEPS
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())
    histories = [json.loads(state["history"]) for state in (one, other)]
    assert histories[0]["training"] == histories[1]["training"]
    assert histories[0]["validation"] == histories[1]["validation"]


def test_training_killed_twice_ends_with_the_same_bits(settings, finished, killed_at):
    killed_at(60, train_lm, settings)
    killed_at(110, train_lm, settings)
    assert (train_lm(settings) / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_finished_training_is_not_run_again(settings, finished, killed_at):
    train_lm(settings)
    state = (settings.output / "training.pt").read_bytes()
    train_lm(settings)
    assert (settings.output / "training.pt").read_bytes() == state


def test_seed_changes_the_weights(settings, finished):
    other = train_lm(replace(settings, seed=1, tokens=64))
    assert (other / "model.safetensors").read_bytes() != (finished / "model.safetensors").read_bytes()


def test_state_of_other_settings_is_refused_with_the_difference(settings, killed_at):
    killed_at(60, train_lm, settings)
    changed = replace(settings, peak_rate=2e-2, dropout=0.0)
    with pytest.raises(TrainingError, match=r"dropout was 0.1, is 0.0, peak_rate was 0.01, is 0.02"):
        train_lm(changed)
    with pytest.raises(TrainingError, match="width was 16, is 8"):
        train_lm(replace(settings, width=8))


@pytest.mark.parametrize("damage", ["truncated", "empty", "another pickle"])
def test_damaged_state_is_refused(damage, settings, killed_at):
    killed_at(60, train_lm, settings)
    path = settings.output / "training.pt"
    if damage == "another pickle":
        torch.save({"identity": "{}", "step": 1}, path)
    else:
        path.write_bytes(path.read_bytes()[: 1000 * (damage == "truncated")])
    with pytest.raises(
        TrainingError, match=r"training\.pt is damaged, or not the state of a training: it cannot be read"
    ) as told:
        train_lm(settings)
    assert "miniz" not in str(told.value)


def test_global_generator_is_not_touched(settings):
    before = torch.random.get_rng_state()
    train_lm(replace(settings, tokens=2 * 64))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_diverging_loss_is_an_error(settings):
    with pytest.raises(TrainingError, match="loss of step"):
        train_lm(replace(settings, peak_rate=1e30, warmup_steps=1))


@pytest.mark.parametrize(("context", "text"), [(1200, "validation"), (6000, "training")])
def test_text_too_short_for_a_window_is_an_error(context, text, settings):
    with pytest.raises(TrainingError, match=rf"{text} text has \d+ tokens"):
        train_lm(replace(settings, context=context, tokens=context))


@pytest.mark.parametrize("context", [150, 30, 7, 1])
def test_every_context_that_fits_is_trained(context, settings):
    output = train_lm(replace(settings, context=context, tokens=4 * context))
    config = json.loads((output / "config.json").read_text())
    assert config["context_length"] == context
    assert all(tensor.isfinite().all() for tensor in load_file(output / "model.safetensors").values())


def test_vocabulary_without_room_is_an_error(settings):
    with pytest.raises(QslmError, match="no room"):
        train_lm(replace(settings, vocabulary=20))


@pytest.mark.parametrize(("count", "batch"), [(7, 3), (5, 5), (3, 10), (1, 2)])
def test_every_window_is_seen_once_an_epoch(count, batch):
    seen = [window for step in range(4 * count) for window in windows_of_step(count, batch, step, seed=5)]
    epochs = [seen[start : start + count] for start in range(0, len(seen) - count + 1, count)]
    assert len(epochs) >= 4 and all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 5 or epochs[0] != epochs[1]
    assert count < 5 or windows_of_step(count, count, 0, seed=4) != windows_of_step(count, count, 0, seed=5)


def test_an_epoch_is_shuffled_once(monkeypatch):
    drawn = []
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *given, **named: drawn.append(given) or randperm(*given, **named))
    for step in range(10):
        windows_of_step(41, 8, step, seed=6)
    assert len(drawn) == 2


def test_a_saved_state_from_before_torch_and_threads_were_kept_is_read(settings, finished):
    train_lm(settings)
    path = settings.output / "training.pt"
    state = torch.load(path, weights_only=True)
    history = json.loads(state["history"])
    assert (history.pop("torch"), history.pop("threads")) == (torch.__version__, 1)
    torch.save({**state, "history": json.dumps(history)}, path)
    record = json.loads((train_lm(settings) / "training.json").read_text())
    assert record["threads"] == 1 and record["history"] == history
