import numpy as np
import pytest
import torch
from torch import nn

from qslm.data.files import LabelledText
from qslm.errors import DataError, TaskError
from qslm.tasks.classification import Classification
from qslm.tasks.task import Losses

WORDS = ["the", "film", "is", "good", "bad", ",", "ü"]
RNG = np.random.default_rng(0)
SENTENCES = tuple(" ".join(RNG.choice(WORDS, RNG.integers(0, 30))) for _ in range(300))
LABELLED = LabelledText(SENTENCES, tuple(RNG.integers(0, 2, 300).tolist()))


class MeanPool(nn.Module):
    """A classifier that pools over real tokens: padding must not matter."""

    def __init__(self, classes=2, vocabulary=300):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(vocabulary, classes, generator=generator, dtype=torch.float64))

    def forward(self, ids, mask=None):
        values = self.table[ids] * mask.unsqueeze(-1)
        return values.sum(1) / mask.sum(1, keepdim=True)


def make(tokenizer, labelled=LABELLED, context=64, **options):
    return Classification("labelled", {"all": labelled}, tokenizer, classes=2, context=context, **options)


def measure(task, model):
    return Losses.concatenate([task.losses(model, batch) for batch in task.batches("all")])


def test_losses_are_in_the_order_of_the_sentences(small_tokenizer):
    model, task = MeanPool(), make(small_tokenizer)
    losses = measure(task, model)
    for unit, (sentence, label) in enumerate(zip(LABELLED.sentences, LABELLED.labels, strict=True)):
        ids = small_tokenizer.encode(sentence).ids or [0]
        assert losses.values[unit] == float(model.table[ids].mean(0).argmax().item() == label)
    assert task.reduce(losses) == losses.values.mean()
    assert 0.3 < task.reduce(losses) < 0.7
    assert losses.weights.tolist() == [1.0] * 300


def test_a_limit_keeps_sentences_evenly_spread(small_tokenizer):
    ordered = LabelledText(SENTENCES, (0,) * 150 + (1,) * 150)
    units, labels = [], []
    for batch in make(small_tokenizer, ordered, sentences=10).batches("all"):
        units += batch.units.tolist()
        labels += batch.labels.tolist()
    assert sorted(units) == list(range(10)) and sorted(labels) == [0] * 5 + [1] * 5
    whole, other = make(small_tokenizer), make(small_tokenizer, sentences={"search": 10})
    assert (
        whole.fingerprint("all") == other.fingerprint("all") == make(small_tokenizer, sentences=999).fingerprint("all")
    )
    with pytest.raises(TaskError, match="limit of 0 sentences"):
        make(small_tokenizer, sentences=0)


def test_batches_are_padded_on_the_right_to_multiples_of_eight(small_tokenizer):
    batches = make(small_tokenizer).batches("all")
    widths = [batch.ids.shape[1] for batch in batches]
    assert widths == sorted(widths)
    assert len(set(widths)) > 3
    for batch in batches:
        assert batch.ids.shape[1] % 8 == 0
        assert len(batch.ids) <= 64
        lengths = batch.mask.sum(1)
        assert int(lengths.max()) > batch.ids.shape[1] - 8
        assert torch.equal(batch.mask, torch.arange(batch.ids.shape[1]) < lengths.unsqueeze(1))
        assert bool((batch.ids[~batch.mask] == small_tokenizer.token_to_id("<|padding|>")).all())
    assert sorted(unit for batch in batches for unit in batch.units.tolist()) == list(range(300))


def test_an_empty_sentence_is_one_real_token(small_tokenizer):
    labelled = LabelledText(("", "good"), (0, 1))
    (batch,) = make(small_tokenizer, labelled).batches("all")
    assert batch.mask.sum(1).tolist()[0] == 1
    assert batch.ids[0, 0] == small_tokenizer.token_to_id("<|endoftext|>")


def test_long_sentences_lose_their_end_and_it_is_told(small_tokenizer, listener):
    task = make(small_tokenizer, LabelledText(("good " * 50, "bad"), (0, 1)), context=10, progress=listener)
    batches = task.batches("all")
    assert max(int(batch.mask.sum(1).max()) for batch in batches) == 10
    assert listener.messages == ["labelled, all: 1 of 2 sentences are longer than 10 tokens and lose their end."]


def test_a_sentence_with_a_logit_that_is_no_number_is_wrong(small_tokenizer):
    model = MeanPool()
    with torch.no_grad():
        model.table.fill_(float("nan"))
    assert measure(make(small_tokenizer), model).values.sum() == 0


def test_a_language_model_is_refused_with_the_remedy(small_tokenizer):
    class Language(MeanPool):
        def forward(self, ids, mask=None):
            return self.table[ids]

    task = make(small_tokenizer)
    with pytest.raises(TaskError, match="qslm train classifier"):
        task.losses(Language(), task.batches("all")[0])


def test_other_classes_are_refused(small_tokenizer):
    task = make(small_tokenizer)
    with pytest.raises(TaskError, match="has 2 classes"):
        task.losses(MeanPool(classes=3), task.batches("all")[0])


def test_ids_beyond_the_models_vocabulary_are_refused(small_tokenizer):
    with pytest.raises(TaskError, match="vocabulary has 40 tokens"):
        make(small_tokenizer, vocabulary_size=40).batches("all")


def test_missing_splits_and_sentences_are_refused(small_tokenizer):
    with pytest.raises(TaskError, match="no split 'search'"):
        make(small_tokenizer).batches("search")
    with pytest.raises(DataError, match="has no sentences"):
        make(small_tokenizer, LabelledText((), ())).batches("all")
    with pytest.raises(TaskError, match="holds no sentence"):
        make(small_tokenizer, context=0)


def test_parts_put_together_in_any_order_are_the_same(small_tokenizer):
    model, task = MeanPool(), make(small_tokenizer)
    parts = [task.losses(model, batch) for batch in task.batches("all")]
    nested = Losses.concatenate([Losses.concatenate(parts[3:]), Losses.concatenate(parts[:3])])
    assert nested.values.tolist() == Losses.concatenate(parts).values.tolist()
