"""Generation: greedy is the argmax of the parallel form, sampling is seeded and restricted, misuse is an error."""

import pytest
import torch
from networks.spikegpt import random_spikegpt
from tokenizers import Tokenizer, decoders, models

from qslm.data.tokenizer import END_OF_TEXT, encode
from qslm.errors import TaskError
from qslm.runtime import generate
from qslm.runtime.sampling import sample, stream


@pytest.fixture
def model(small_tokenizer):
    return random_spikegpt(small_tokenizer.get_vocab_size(), 33, 2, 40, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_greedy_text_is_the_argmax_of_the_parallel_form(model, small_tokenizer):
    model.head.weight[0] = 0  # the end-of-text token is never the likeliest
    prompt = "the film is"
    ids = encode(small_tokenizer, prompt)[None]
    for _ in range(20):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), 1)
    expected = ids[0, len(encode(small_tokenizer, prompt)) :].tolist()
    assert list(stream(model, small_tokenizer, prompt, 20, 0.0, 1.0, seed=0)) == expected
    assert len(set(expected)) > 1
    text = generate(model, small_tokenizer, prompt, tokens=20, temperature=0)
    assert text == prompt + small_tokenizer.decode(expected)


def test_same_seed_gives_the_same_text(model, small_tokenizer):
    texts = [generate(model, small_tokenizer, "a film", tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_costs_the_logits_of_its_last_token_alone(model, small_tokenizer, monkeypatch):
    rows = []
    head = model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda x: (rows.append(x.numel() // x.shape[-1]), head(x))[1])
    generate(model, small_tokenizer, "the film is good . " * 50, tokens=3, temperature=0)
    assert rows and set(rows) == {1}


def test_between_two_tokens_gradients_are_the_callers(model, small_tokenizer):
    model.head.weight[0] = 0
    for _ in stream(model, small_tokenizer, "the film", 3, 0.0, 1.0, seed=0):
        assert not torch.is_inference_mode_enabled()
        x = torch.ones(2, requires_grad=True)
        assert x.square().sum().requires_grad


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_any_integer_is_a_seed(seed, model, small_tokenizer):
    assert generate(model, small_tokenizer, "a", tokens=1, seed=seed)


def test_prompt_may_be_empty_and_no_token_wanted(model, small_tokenizer):
    assert generate(model, small_tokenizer, "the end", tokens=0) == "the end"
    end = small_tokenizer.token_to_id(END_OF_TEXT)
    first = next(stream(model, small_tokenizer, "", 1, 0.0, 1.0, seed=0))
    model.head.weight[end] = 0
    assert first == int(model(torch.tensor([[end]]))[0, -1].argmax())


def test_a_prompt_that_is_no_text_is_refused(model, small_tokenizer):
    with pytest.raises(TaskError, match="not UTF-8: what stands behind 2 characters"):
        generate(model, small_tokenizer, "ab\udcff", tokens=1)


def test_end_of_text_ends_it(model, small_tokenizer):
    model.head.weight.zero_()
    model.head.weight[small_tokenizer.token_to_id(END_OF_TEXT)] = 100 * model.ln_out.bias
    assert generate(model, small_tokenizer, "the film", tokens=50, temperature=0) == "the film"


def test_global_generator_is_not_touched(model, small_tokenizer):
    before = torch.random.get_rng_state()
    generate(model, small_tokenizer, "a film", tokens=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sampling_follows_the_probabilities():
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64)
    draws = generator()
    drawn = torch.bincount(torch.tensor([sample(probabilities.log(), 1.0, 1.0, draws) for _ in range(4000)]))
    torch.testing.assert_close(drawn / 4000, probabilities.float(), rtol=0, atol=0.03)
    sharp = probabilities.square() / probabilities.square().sum()
    drawn = torch.bincount(torch.tensor([sample(probabilities.log(), 0.5, 1.0, draws) for _ in range(4000)]))
    torch.testing.assert_close(drawn / 4000, sharp.float(), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "allowed"), [(0.3, {1}), (0.499, {1}), (0.7, {1, 3}), (0.8, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_likeliest(top_p, allowed):
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64).log()
    draws = generator(1)
    assert {sample(logits, 1.0, top_p, draws) for _ in range(300)} == allowed


@pytest.mark.parametrize("temperature", [1e-40, 1e-300, 1e30])
def test_extreme_temperatures_draw_a_token(temperature):
    logits = torch.tensor([1.0, 3.0, 2.0, -40.0])
    drawn = {sample(logits, temperature, 1.0, generator(seed)) for seed in range(50)}
    assert drawn == {1} if temperature < 1 else len(drawn) > 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
    ids=str,
)
def test_unusable_settings_are_refused(wrong, model, small_tokenizer):
    with pytest.raises(TaskError, match="Cannot generate"):
        generate(model, small_tokenizer, "a", **wrong)


def test_classifier_is_refused(small_tokenizer):
    with pytest.raises(TaskError, match="classifier"):
        generate(random_spikegpt(classes=2), small_tokenizer, "a")


def test_tokenizer_of_more_words_is_refused(small_tokenizer):
    with pytest.raises(TaskError, match="vocabulary has 31 tokens"):
        generate(random_spikegpt(31), small_tokenizer, "the film")


def test_tokenizer_without_end_of_text(model):
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.decoder = decoders.Fuse()
    assert generate(random_spikegpt(2), tokenizer, "", tokens=9).strip("ab") == ""
