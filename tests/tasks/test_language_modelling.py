import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from qslm.data.tokenizer import encode
from qslm.errors import DataError, TaskError
from qslm.tasks.language_modelling import BATCH_LOGITS, CHUNK_LOGITS, LanguageModelling, _nats
from qslm.tasks.statistics import interval
from qslm.tasks.task import Losses

TEXT = "the film is good .\nthe plot is bad , ü !\n" * 12


class Bigram(nn.Module):
    """Logits depend on the last token alone."""

    def __init__(self, vocabulary, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=generator))

    def forward(self, ids, mask=None):
        return self.table[ids]


def make(tokenizer, context=7, **options):
    return LanguageModelling("text", {"report": TEXT}, tokenizer, context=context, **options)


def measure(task, model, split="report"):
    return Losses.concatenate([task.losses(model, batch) for batch in task.batches(split)])


@pytest.mark.parametrize("context", [1, 7, 50, 100_000])
def test_every_token_after_the_first_is_predicted_once(small_tokenizer, context):
    ids = encode(small_tokenizer, TEXT)
    batches = make(small_tokenizer, context).batches("report")
    in_order = torch.cat([batch.units for batch in batches]).argsort().tolist()
    inputs, targets = ([row for batch in batches for row in getattr(batch, name)] for name in ("ids", "targets"))
    assert torch.equal(torch.cat([inputs[place] for place in in_order]), ids[:-1])
    assert torch.equal(torch.cat([targets[place] for place in in_order]), ids[1:])
    windows, ragged = divmod(len(ids) - 1, context)
    assert sum(len(batch.ids) for batch in batches) == windows + (ragged > 0)
    assert {batch.ids.shape[1] for batch in batches[:-1]} <= {context}
    if ragged:
        assert batches[-1].ids.shape == (1, ragged)


def test_batches_bound_their_logits(small_tokenizer):
    task = make(small_tokenizer, 100, vocabulary_size=BATCH_LOGITS // 250)
    assert {len(batch.ids) for batch in task.batches("report")[:-1]} == {2}
    huge = make(small_tokenizer, 100, vocabulary_size=BATCH_LOGITS)
    assert {len(batch.ids) for batch in huge.batches("report")} == {1}


@pytest.mark.parametrize(("context", "windows"), [(256, 16), (1024, 4), (3000, 1), (5000, 1)])
def test_batches_hold_about_4096_tokens(small_tokenizer, context, windows):
    task = LanguageModelling("text", {"all": TEXT * 60}, small_tokenizer, context=context)
    assert len(task.batches("all")[0].ids) == windows


def test_windows_come_in_a_random_order_that_is_always_the_same(small_tokenizer):
    task = LanguageModelling("text", {"all": TEXT * 9}, small_tokenizer, context=7)
    units = torch.cat([batch.units for batch in task.batches("all")])
    again = LanguageModelling("text", {"all": TEXT * 9}, small_tokenizer, context=7).batches("all")
    assert torch.equal(units, torch.cat([batch.units for batch in again]))
    first = units[:64].double()
    whole = (len(units) - 1) / 2
    assert abs(float(first.mean()) - whole) < 4 * len(units) / 12**0.5 / 8  # they reach over the whole text
    assert len(task.batches("all")) > 10 and not torch.equal(units, units.sort().values)
    assert task.exchangeable


def test_losses_tell_the_place_of_each_window(small_tokenizer):
    model, task = Bigram(300), make(small_tokenizer)
    whole = measure(task, model)
    assert whole.units.tolist() == list(range(len(whole.values)))
    for batch in task.batches("report"):
        part = task.losses(model, batch)
        assert part.units.tolist() == batch.units.tolist()
        assert part.values == pytest.approx(whole.values[part.units], rel=1e-6)


def test_windows_with_gaps_have_no_bytes(small_tokenizer):
    model, task = Bigram(300), make(small_tokenizer, counts_words=True)
    batches = task.batches("report")
    assert task.details(task.losses(model, batches[0]), "report") == {}
    first = task.losses(model, batches[0])
    beginning = Losses(first.values[:3], first.weights[:3], 21, np.arange(3))
    assert task.details(beginning, "report").keys() == {"bits_per_byte"}


def test_nats_need_no_second_tensor_of_the_logits_size():
    """The largest tensors that are made, as PyTorch's profiler counts them, are those of a chunk."""
    logits, targets = torch.randn(40, CHUNK_LOGITS // 8), torch.arange(40)
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        found = _nats(logits, targets)
    assert found == pytest.approx(nn.functional.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-5)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert CHUNK_LOGITS * 4 <= largest < 1.1 * CHUNK_LOGITS * 4 < logits.nbytes / 4


def test_perplexity_and_bits_are_those_of_the_plain_loop(small_tokenizer):
    model, task = Bigram(300).double(), make(small_tokenizer)
    ids = encode(small_tokenizer, TEXT)
    nats = sum(-model.table[previous].float().log_softmax(-1)[token].item() for previous, token in pairwise(ids))
    losses = measure(task, model)
    assert losses.values.sum() == pytest.approx(nats, rel=1e-6)
    assert losses.tokens == losses.weights.sum() == len(ids) - 1
    assert task.reduce(losses) == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-6)
    first = len(small_tokenizer.decode([int(ids[0])]).encode())
    bits = nats / math.log(2) / (len(TEXT.encode()) - first)
    assert task.details(losses, "report") == {"bits_per_byte": pytest.approx(bits, rel=1e-6)}


def test_losses_are_those_of_the_windows(small_tokenizer):
    model, task = Bigram(300), make(small_tokenizer)
    losses, ids = measure(task, model), encode(small_tokenizer, TEXT)
    window = nn.functional.cross_entropy(model.table[ids[14:21]], ids[15:22], reduction="sum").item()
    assert losses.values[2] == pytest.approx(window, rel=1e-6)
    assert losses.weights[2] == 7


def test_windows_limit_the_text_and_its_bytes(small_tokenizer):
    model, task = Bigram(300), make(small_tokenizer, windows=3, counts_words=True)
    whole, limited = measure(make(small_tokenizer), model), measure(task, model)
    assert limited.values.tolist() == whole.values[:3].tolist()
    ids = encode(small_tokenizer, TEXT)[1:22].tolist()
    size = len(small_tokenizer.decode(ids).encode())
    assert task.details(limited, "report") == {
        "bits_per_byte": pytest.approx(limited.values.sum() / math.log(2) / size)
    }


def test_words_are_counted_over_a_whole_split(small_tokenizer):
    task = make(small_tokenizer, counts_words=True)
    losses = measure(task, Bigram(300))
    words = 12 * (5 + 7 + 2)
    assert task.details(losses, "report")["word_perplexity"] == pytest.approx(math.exp(losses.values.sum() / words))


def test_a_uniform_model_has_the_vocabulary_as_perplexity(small_tokenizer):
    model = Bigram(300)
    nn.init.zeros_(model.table)
    found = interval(make(small_tokenizer), measure(make(small_tokenizer), model))
    assert (found.low, found.value, found.high) == pytest.approx((300, 300, 300))


def test_a_model_without_hope_has_infinite_perplexity(small_tokenizer):
    losses = Losses(np.array([8e3, 8e3]), np.array([1.0, 1.0]), 2)
    assert make(small_tokenizer).reduce(losses) == math.inf


def test_gradients_are_not_kept_and_the_mode_is_left_alone(small_tokenizer):
    model, task = Bigram(300), make(small_tokenizer)
    measure(task, model)
    assert model.table.grad is None
    assert model.training


def test_fingerprints_tell_texts_and_windows_apart(small_tokenizer):
    same = {make(small_tokenizer).fingerprint("report") for _ in range(2)}
    other = {make(small_tokenizer, 8).fingerprint("report"), make(small_tokenizer, windows=3).fingerprint("report")}
    assert len(same) == 1
    assert len(same | other) == 3


def test_ids_beyond_the_models_vocabulary_are_refused_before_any_computing(small_tokenizer):
    with pytest.raises(TaskError, match="vocabulary has 40 tokens"):
        make(small_tokenizer, vocabulary_size=40).batches("report")


@pytest.mark.parametrize("shape", [(2,), (8, 7, 20)])
def test_models_without_fitting_logits_are_refused(small_tokenizer, shape):
    class Fixed(Bigram):
        def forward(self, ids, mask=None):
            return torch.zeros(len(ids), *shape[1:]) if len(shape) == 3 else torch.zeros(len(ids), 2)

    task = make(small_tokenizer)
    with pytest.raises(TaskError, match=r"not logits \(batch, tokens, vocabulary\)"):
        task.losses(Fixed(3), task.batches("report")[0])


def test_too_short_a_text_and_an_unknown_split_are_refused(small_tokenizer):
    with pytest.raises(DataError, match="has 1 tokens"):
        LanguageModelling("text", {"report": "a"}, small_tokenizer).batches("report")
    with pytest.raises(TaskError, match="no split 'calibrate'"):
        make(small_tokenizer).batches("calibrate")
    with pytest.raises(TaskError, match="make no window"):
        make(small_tokenizer, context=0)


def test_a_null_and_a_very_long_line_are_measured(small_tokenizer):
    task = LanguageModelling("text", {"all": "a\x00b" * 3000}, small_tokenizer, context=64)
    assert np.isfinite(task.reduce(measure(task, Bigram(300), "all")))
