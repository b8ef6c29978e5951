from itertools import pairwise

import numpy as np
import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.spikegpt import random_ids, random_spikegpt, skewed_spikegpt
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork
from torch import nn
from torch.nn import functional as F

from qslm.anatomy.find import find_anatomy
from qslm.evaluation import estimates
from qslm.evaluation.estimates import Estimate, estimate_costs
from qslm.evaluation.inputs import collect_inputs
from qslm.formats import Format
from qslm.quantizers import awq, round_site
from qslm.search import Options
from qslm.search.costs import Costs
from qslm.tasks.task import Losses, Task

FORMATS = tuple(Format("integer", bits) for bits in (8, 6, 4, 3, 2))


class Rows(Task):
    """Calls the network with rows of ids, and a mask where one is given; what it measures is not asked here."""

    name = "rows"

    def __init__(self, batches, error=None):
        self.found, self.error = batches, error

    def batches(self, split):
        return self.found

    def losses(self, model, batch):
        with torch.inference_mode():
            model(*(tensor.clone() for tensor in batch))
        if self.error:
            raise self.error
        return Losses(np.ones(1), np.ones(1), 1)


class Smooth(nn.Module):
    """Ids to the logits of one prediction, through matrices alone."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.emb, self.up, self.out = nn.Embedding(9, 6), nn.Linear(6, 8, bias=False), nn.Linear(8, 5, bias=False)
        for weight in self.parameters():
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape, generator=generator))

    def forward(self, ids):
        return self.out(torch.tanh(self.up(self.emb(ids).mean(1))))


def estimated(model, task, formats=FORMATS):
    options = Options(precisions=[fmt.bits for fmt in formats], quantizers=("minmax",), signs=False)
    return estimate_costs(model, find_anatomy(model), task, options)


def ids_of(rows, tokens, vocabulary, seed=1):
    return torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def matrices(model):
    return [site for site in find_anatomy(model).sites if not site.is_vector]


def spikegpt_task(model, rows=4, tokens=10):
    return Rows([(random_ids(model, rows, tokens, seed),) for seed in range(3)])


def networks():
    language, encoder, tied = random_spikegpt(), SpikingEncoder(), TiedNetwork()
    classifier = random_spikegpt(classes=3)
    mask = torch.arange(10) < torch.tensor([[10], [7], [4]])
    return {
        "spikegpt": (language, spikegpt_task(language)),
        "classifier": (classifier, Rows([(random_ids(classifier, 3, 10), mask)])),
        "encoder": (encoder, Agreement(encoder)),
        "tied": (tied, NextToken(tied)),
    }


every_network = pytest.mark.parametrize("name", networks())


@every_network
def test_every_matrix_costs_more_with_fewer_bits(name):
    model, task = networks()[name]
    found = estimated(model, task)
    assert set(found.costs.values) == {(site.name, fmt) for site in matrices(model) for fmt in FORMATS}
    for site in matrices(model):
        costs = [found.costs.of(site.name, fmt) for fmt in FORMATS]
        assert all(more <= less for more, less in pairwise(costs))
        assert 0 < costs[0] < costs[-1] / 10
    assert found.samples > 1


@every_network
def test_the_same_text_gives_the_same_costs_whatever_the_global_state(name):
    model, task = networks()[name]
    first = estimated(model, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert estimated(model, task).costs.values == first.costs.values


class Stop(Exception):  # noqa: N818
    pass


@every_network
@pytest.mark.parametrize("broken", [False, True])
def test_the_network_is_left_as_it_was(name, broken):
    model, task = networks()[name]
    model.train()
    next(model.children()).eval()
    for place, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(place % 3 > 0)
        parameter.grad = torch.full_like(parameter, 7.0) if place % 2 else None
    gradients = [parameter.grad for parameter in model.parameters()]
    kept = state_of(model)
    if broken:
        breaking_on_the_third_call(model)
        with pytest.raises(Stop):
            estimated(model, task)
    else:
        estimated(model, task)
    assert state_of(model) == kept
    assert all(now is before for now, before in zip((p.grad for p in model.parameters()), gradients, strict=True))
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def breaking_on_the_third_call(model):
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    model.register_forward_hook(hook)


def test_an_exception_of_the_task_leaves_the_network_as_it_was():
    model = TiedNetwork().train()

    class Broken(Rows):
        def losses(self, model, batch):
            raise Stop

    kept = state_of(model)
    with pytest.raises(Stop):
        estimated(model, Broken([(ids_of(2, 5, 32),)]))
    assert state_of(model) == kept and not model._forward_pre_hooks


def state_of(model):
    """Bits of weights, buffers and gradients, modes, and the global random state."""
    parameters = list(model.parameters())
    numbers = [*model.state_dict().values(), *(p.grad for p in parameters if p.grad is not None)]
    return (
        [number.detach().numpy().tobytes() for number in numbers],
        [(p.requires_grad, p.grad is None) for p in parameters],
        [module.training for module in model.modules()],
        torch.get_rng_state().numpy().tobytes(),
    )


def test_the_costs_are_those_of_a_plain_fisher_information():
    """One row a sample, all alike, so that the order does not matter; the labels are drawn as the estimate draws."""
    model, row = Smooth(), ids_of(1, 4, 9)
    rows = row.expand(12, -1)
    found = estimated(model, Rows([(rows,)]))
    generator = torch.Generator().manual_seed(estimates.SEED)
    torch.randperm(1, generator=generator)
    sums = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for _ in range(12):
        logits = model(row)
        label = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        gradients = torch.autograd.grad(F.cross_entropy(logits, label), list(model.parameters()))
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total += gradient**2
    for name, weight in model.named_parameters():
        for fmt in FORMATS:
            error = round_site(weight, fmt, "minmax").dequantize() - weight
            expected = float((sums[name] * error.detach() ** 2).sum()) / (2 * 12)
            assert found.costs.of(name, fmt) == pytest.approx(expected, rel=1e-4)


def test_the_costs_are_about_the_divergence_from_the_float_network(monkeypatch):
    """Smooth networks, each matrix alone at 8 bits: the measured KL within a factor of 3."""
    monkeypatch.setattr(estimates, "TOKENS", 40_000)
    fmt = FORMATS[0]
    for seed in range(3):
        model, ids = Smooth(seed), ids_of(2000, 4, 9, seed)
        found = estimated(model, Rows([(ids,)]), [fmt])
        with torch.no_grad():
            before = model(ids).log_softmax(-1)
            for name, weight in model.named_parameters():
                kept = weight.clone()
                weight.copy_(round_site(kept, fmt, "minmax").dequantize())
                after = model(ids).log_softmax(-1)
                weight.copy_(kept)
                divergence = float((before.exp() * (before - after)).sum(-1).mean())
                assert divergence / 3 < found.costs.of(name, fmt) < divergence * 3


def test_a_prediction_of_a_window_counts_once_as_tokens_do():
    """Twice the tokens a window: costs a token, not a window."""
    model = TiedNetwork()
    short, long = (estimated(model, Rows([(ids_of(64, tokens, 32),)])).costs for tokens in (8, 32))
    ratio = sum(long.values.values()) / sum(short.values.values())
    assert 0.5 < ratio < 2


def test_tied_weights_are_one_matrix_with_both_gradients():
    model = TiedNetwork()
    found = estimated(model, NextToken(model)).costs
    assert ("emb.weight", FORMATS[0]) in found.values and ("head.weight", FORMATS[0]) not in found.values
    untied = TiedNetwork()
    untied.head.weight = nn.Parameter(untied.emb.weight.detach().clone())
    apart = estimated(untied, NextToken(model)).costs
    ends = [apart.of(name, FORMATS[2]) for name in ("emb.weight", "head.weight")]
    assert found.of("emb.weight", FORMATS[2]) > max(ends) * 0.5
    assert found.of("emb.weight", FORMATS[2]) != pytest.approx(ends[1])


def test_a_binarized_embedding_has_a_cost_where_it_is_no_sign():
    model = random_spikegpt(binary=True)
    assert find_anatomy(model)["emb.weight"].binarized
    found = estimated(model, spikegpt_task(model)).costs
    assert 0 < found.of("emb.weight", FORMATS[0]) < found.of("emb.weight", FORMATS[-1])


def test_a_step_without_surrogate_leaves_what_is_behind_it_to_the_others_mean():
    model = SpikingEncoder()
    found = estimated(model, Agreement(model)).costs
    reached = "classifier.weight"
    numel = {site.name: site.numel for site in matrices(model)}
    for name, count in numel.items():
        for fmt in FORMATS:
            assert found.of(name, fmt) == pytest.approx(found.of(reached, fmt) * count / numel[reached])


class Stepped(nn.Module):
    """Nothing here has a gradient."""

    def __init__(self):
        super().__init__()
        self.emb, self.out = nn.Embedding(9, 6), nn.Linear(6, 5)

    def forward(self, ids):
        return self.out(self.emb(ids).mean(1)).ge(0).float()


class Told(Stepped):
    """Its logits are no plain tensor."""

    def forward(self, ids):
        return {"logits": self.out(self.emb(ids).mean(1))}


class Exploding(Smooth):
    """Its logits are finite, its gradients are not."""

    def forward(self, ids):
        logits = super().forward(ids)
        return logits + (logits - logits.detach()) * 1e30


class Infinite(Smooth):
    def forward(self, ids):
        return super().forward(ids) * float("inf")


@pytest.mark.parametrize("network", [Stepped, Told, Exploding, Infinite])
def test_without_gradients_the_bits_are_what_is_expected(network):
    model = network()
    found = estimated(model, Rows([(ids_of(3, 4, 9),)]))
    expected = Costs.by_bits([(site.name, site.numel) for site in matrices(model)], FORMATS)
    assert found.costs.values == expected.values
    assert found.work == 3 * found.tokens * len(find_anatomy(model).blocks) > 0


def test_a_task_that_goes_around_the_network_is_asked_once_and_answered_by_bits():
    model, asked = Stepped(), []

    class Around(Rows):
        def losses(self, model, batch):
            asked.append(batch)
            return Losses(np.ones(1), np.ones(1), 1)

    found = estimated(model, Around([(ids_of(3, 4, 9),)] * 5))
    assert found.samples == found.work == 0 and len(asked) == 1
    assert found.costs.of("out.weight", FORMATS[0]) > 0


def test_the_work_is_the_tokens_three_times_through_every_block():
    model = random_spikegpt(layers=2)
    found = estimated(model, spikegpt_task(model, rows=4, tokens=10))
    assert (found.samples, found.tokens) == (12, 120)
    assert found.work == 3 * 120 * len(find_anatomy(model).blocks)


def test_the_sample_is_bounded_and_comes_from_all_batches(monkeypatch):
    monkeypatch.setattr(estimates, "TOKENS", 40)
    monkeypatch.setattr(estimates, "SAMPLE_TOKENS", 8)
    model, seen = TiedNetwork(), []
    model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    found = estimated(model, Rows([(torch.full((6, 20), number),) for number in range(4)]))
    assert (found.samples, found.tokens) == (5, 40)
    taken = [ids for ids in seen if len(ids) == 1]
    assert [ids.shape for ids in taken] == [(1, 8)] * 5
    assert {int(ids[0, 0]) for ids in taken} == {0, 1, 2, 3}


def test_the_calibration_text_is_taken_where_there_is_one():
    model, splits = TiedNetwork(), []

    class Split(Rows):
        def batches(self, split):
            splits.append(split)
            return {"calibrate": self.found}[split]

    estimated(model, Split([(ids_of(3, 4, 32),)]))
    assert set(splits) == {"calibrate"}
    assert estimated(model, NextToken(model)).samples > 0  # its splits are search and report


def test_an_estimate_comes_back_from_its_text_to_the_bit():
    found = estimated(TiedNetwork(), NextToken(TiedNetwork()))
    again = Estimate.from_json(found.to_json())
    assert again.costs.values == found.costs.values != {}
    assert (again.samples, again.tokens, again.work) == (found.samples, found.tokens, found.work)


def test_padding_changes_nothing_under_a_mask():
    """Rows of a padded batch keep their masks: more padding, the same costs."""
    model = random_spikegpt(classes=3)
    ids, lengths = random_ids(model, 3, 8), torch.tensor([[8], [5], [3]])

    def padded(tokens):
        padding = torch.full((3, tokens - 8), 7)
        return Rows([(torch.cat([ids, padding], 1), torch.arange(tokens) < lengths)])

    less, more = (estimated(model, padded(tokens)).costs.values for tokens in (8, 16))
    assert more == {key: pytest.approx(cost, rel=1e-3) for key, cost in less.items()}


def test_a_length_of_every_row_is_cut_with_the_row():
    class Lengths(Smooth):
        def forward(self, ids, lengths):
            assert len(ids) == len(lengths)
            return super().forward(ids) / lengths[:, None]

    found = estimated(Lengths(), Rows([(ids_of(3, 4, 9), torch.tensor([4, 2, 1]))]))
    assert found.samples == 3


def test_no_more_than_one_gradient_and_the_sums_are_held():
    """While a gradient is squared, no other weight has one: 10 matrices, at most 1 gradient at a time."""
    model, held = TiedNetwork(depth=5), []

    def count(_):
        held.append(sum(weight.grad is not None for weight in model.parameters()))

    hooks = [weight.register_post_accumulate_grad_hook(count) for weight in model.parameters()]
    estimated(model, NextToken(model))
    for hook in hooks:
        hook.remove()
    assert held and max(held) == 1


def of_quantizers(model, task, quantizers):
    options = Options(precisions=[fmt.bits for fmt in FORMATS], quantizers=quantizers)
    anatomy = find_anatomy(model)
    inputs = collect_inputs(model, anatomy, task)
    return inputs, estimate_costs(model, anatomy, task, options, inputs=inputs).costs


def test_all_readers_of_a_fold_are_scaled_or_none_by_what_costs_them_less():
    model = skewed_spikegpt()
    task = spikegpt_task(model)
    inputs, both = of_quantizers(model, task, ("clip", "awq"))
    plain, scaled = (of_quantizers(model, task, (name,))[1] for name in ("clip", "awq"))
    chosen = set()
    for fold in model.folds():
        named = {both.quantizer(name, fmt) for name in fold.consumers for fmt in FORMATS}
        if inputs[fold.consumers[0]].exponents is not None:
            (quantizer,) = named
            chosen.add(quantizer)
            pairs = [[sum(one.of(n, fmt) for n in fold.consumers) for one in (plain, scaled)] for fmt in FORMATS]
            assert (quantizer == "awq") == (np.prod([less / more for less, more in pairs]) > 1)
    assert "awq" in chosen


@pytest.mark.parametrize("factor", [0.0, float("inf")])
def test_readers_that_no_cost_or_no_gradient_reaches_are_not_scaled_without_the_others(factor, monkeypatch):
    """Nothing is expected of one reader of a fold: none of its readers is scaled."""
    model = skewed_spikegpt()
    fisher = estimates._fisher

    def altered(*arguments):
        found = fisher(*arguments)
        found.sums["blocks.0.att.key.weight"].mul_(factor)
        found.sums.pop("blocks.1.att.key.weight")
        return found

    monkeypatch.setattr(estimates, "_fisher", altered)
    _, costs = of_quantizers(model, spikegpt_task(model), ("awq", "clip"))
    for name in ("key", "value", "receptance"):
        found = {costs.quantizer(f"blocks.1.att.{name}.weight", fmt) for fmt in FORMATS}
        assert found == {"clip" if factor == 0 else None}


def test_where_nothing_is_scaled_every_format_has_its_own_quantizer(monkeypatch):
    model = random_spikegpt()
    monkeypatch.setattr(awq, "ALPHAS", ())
    inputs, costs = of_quantizers(model, spikegpt_task(model), ("gptq", "awq"))
    assert all(one.exponents is None for one in inputs.values())
    assert {costs.quantizer("head.weight", fmt) for fmt in FORMATS} <= {"gptq", "awq"}
