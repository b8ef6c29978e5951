import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.encoder import SpikingEncoder, seeded
from networks.spikegpt import random_ids, random_spikegpt
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.evaluation import Evaluator, PrefixCache
from qslm.evaluation.parts import shuffled
from qslm.formats import Format

FORMATS = [Format.parse(text) for text in ("float32", "float16", "int6", "int3", "int2-g32")]


class Windows(NextToken):
    """Perplexity on given ids."""

    def __init__(self, *batches):
        self.splits = {"search": list(batches)}

    def losses(self, model, batch):
        with torch.inference_mode():
            return super().losses(model, batch)


def spikegpt():
    model = random_spikegpt(layers=3)
    return model, Windows(random_ids(model, 3, 9), random_ids(model, 2, 12, seed=2), random_ids(model, 3, 9, seed=3))


def encoder():
    model = SpikingEncoder(depth=3)
    return model, Agreement(model, batch=40)


def tied():
    model = TiedNetwork(depth=3)
    return model, NextToken(model, windows=30, batch=10)


NETWORKS = {make.__name__: make for make in (spikegpt, encoder, tied)}


def changes(anatomy):
    """Sequences of allocations, each made of an earlier one by another format at some sites, or quantizer."""
    step = st.tuples(
        st.integers(0, 20), st.sets(st.integers(0, len(anatomy.sites) - 1), max_size=3), st.sampled_from(FORMATS)
    )
    return st.lists(st.tuples(step, st.sampled_from(("minmax", "minmax", "clip"))), min_size=2, max_size=8)


def allocations(anatomy, steps):
    made = [Allocation.float32(anatomy)]
    for (origin, sites, fmt), quantizer in steps:
        names = [anatomy.sites[place].name for place in sites]
        names = [name for name in names if not (fmt.is_integer and anatomy[name].is_vector)]
        changed = made[origin % len(made)].replace(names, fmt)
        made.append(Allocation(anatomy, changed.formats, quantizer))
    return made


def same(one, other):
    return (
        one.losses.values.tobytes() == other.losses.values.tobytes()
        and one.losses.weights.tobytes() == other.losses.weights.tobytes()
        and (one.value, one.low, one.high, one.tokens) == (other.value, other.low, other.high, other.tokens)
    )


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_the_cache_changes_no_bit(name, data):
    model, task = NETWORKS[name]()
    anatomy = find_anatomy(model)
    bound = data.draw(st.sampled_from((2**30, 60_000, 12_000)))
    made = allocations(anatomy, data.draw(changes(anatomy)))
    with Evaluator(model, anatomy, task, cache_bytes=bound) as cached:
        found = []
        for allocation in made:
            found.append(cached.measure(allocation, "search"))
            assert cached.chain.cache.bytes <= bound
        assert all(cached.chain.usable.values()) and sum(one.work for one in found) == cached.work
    with Evaluator(model, anatomy, task, cache_bytes=0) as plain:
        for allocation, one in zip(made, found, strict=True):
            expected = plain.measure(allocation, "search")
            assert expected.work == len(anatomy.blocks) * expected.tokens
            assert same(one, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_what_differs_is_run(name):
    model, task = NETWORKS[name]()
    anatomy = find_anatomy(model)
    floats, blocks = Allocation.float32(anatomy), len(anatomy.blocks)
    last = [site.name for site in anatomy.sites_of("attention 2") if not site.is_vector]
    with Evaluator(model, anatomy, task) as evaluator:
        whole = evaluator.measure(floats, "search").work
        evaluator.measure(floats.replace(last, FORMATS[2]), "search")  # tries the block before once
        assert evaluator.chain.usable == {1: True}
        assert evaluator.chain.finding == "outputs of 1 blocks are reused"
        again = evaluator.measure(floats.replace(last, FORMATS[3]), "search")
        assert again.work * blocks == whole * (blocks - 2)
        first = evaluator.measure(floats.replace([anatomy.sites[0].name], FORMATS[1]), "search")
        assert first.work == whole


def kept(model, task, *pairs, cache_bytes=2**30):
    """Measure allocations of a network with and without a cache; whether all have the same bits, and the chain."""
    anatomy = find_anatomy(model)
    made = [Allocation.float32(anatomy)]
    for names, fmt in pairs:
        made.append(made[-1].replace(names, Format.parse(fmt)))
    made += made[::-1]
    with Evaluator(model, anatomy, task, cache_bytes=cache_bytes) as cached:
        found = [cached.measure(allocation, "search") for allocation in made]
    with Evaluator(model, anatomy, task, cache_bytes=0) as plain:
        expected = [plain.measure(allocation, "search") for allocation in made]
    assert len({one.losses.values.tobytes() for one in expected}) > 1
    return all(map(same, found, expected)), cached.chain


class Reaching(TiedNetwork):
    """The output of the first block reaches over the second, through a threshold that hides NaN."""

    def forward(self, ids):
        first = self.layers[0](self.emb(ids))
        second = self.layers[1](first)
        return self.head(self.layers[2](second + (first >= 0.3).float()))


class Branching(TiedNetwork):
    """What the network computes hangs on a number of the first block."""

    def forward(self, ids):
        first = self.layers[0](self.emb(ids))
        x = self.layers[1](first)
        return self.head(self.layers[2](x if first.max() > 3.0 else -x))


class Remembering(TiedNetwork):
    """The last block reads what the first one has left behind."""

    def forward(self, ids):
        memory = self.layers[0](self.emb(ids))
        self.memory = memory.clone() if not torch.isnan(memory).any() else self.memory
        return self.head(self.layers[2](self.layers[1](memory) + self.memory))


class Stashing(TiedNetwork):
    """The first block leaves something behind in itself, which the last one is given."""

    def __init__(self, **options):
        super().__init__(**options)
        first, compute = self.layers[0], self.layers[0].forward

        def forward(x):
            first.stash = compute(x)
            return first.stash * 1.0

        first.forward = forward

    def forward(self, ids):
        x = self.layers[1](self.layers[0](self.emb(ids)))
        return self.head(self.layers[2](x + self.layers[0].stash))


class Repeating(TiedNetwork):
    """The blocks are run twice."""

    def forward(self, ids):
        x = self.emb(ids)
        for layer in [*self.layers, *self.layers]:
            x = layer(x)
        return self.head(x)


class Changing(TiedNetwork):
    """What a block gives is changed in place afterwards."""

    def forward(self, ids):
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x)
            x.mul_(1.5)
        return self.head(x)


class Boxed(TiedNetwork):
    """A block gives something that is no nest of tensors."""

    def __init__(self, **options):
        super().__init__(**options)
        for layer in self.layers:
            compute = layer.forward
            layer.forward = lambda x, compute=compute: {1: compute(x), 2: 3.0}

    def forward(self, ids):
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x)[1]
        return self.head(x)


TWO = (["layers.2.key.weight"], "int3"), (["layers.1.key.weight"], "int2"), (["layers.2.value.weight"], "int2")


@pytest.mark.parametrize(
    ("network", "right", "wrong"),
    [(Reaching, {0, 1} - {1}, {1}), (Branching, set(), {1}), (Remembering, set(), {1}), (Stashing, set(), {1})],
)
def test_a_network_that_is_no_chain_stays_right(network, right, wrong):
    model = network()
    same_bits, chain = kept(model, NextToken(model, windows=30, batch=10), *TWO)
    assert same_bits
    assert {place for place, usable in chain.usable.items() if not usable} >= wrong
    assert {place for place, usable in chain.usable.items() if usable} >= right
    assert "cannot be" in chain.finding


@pytest.mark.parametrize("network", [Repeating, Boxed])
def test_what_cannot_be_kept_is_run_whole(network):
    model = network()
    same_bits, chain = kept(model, NextToken(model, windows=30, batch=10), *TWO)
    assert same_bits and not chain.usable and chain.cache.bytes == 0
    assert chain.finding == "no outputs of blocks are reused"


def test_what_is_kept_is_not_changed_in_place():
    model = Changing()
    same_bits, chain = kept(model, NextToken(model, windows=30, batch=10), *TWO)
    assert same_bits and any(chain.usable.values())


class Late(nn.Module):
    """The embedding is registered after the blocks, so that the anatomy takes it for a part of the output."""

    def __init__(self):
        super().__init__()
        inner = TiedNetwork(seed=3)
        self.layers, self.emb, self.head = inner.layers, nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
        seeded(self, 5)

    def forward(self, ids):
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_weights_that_only_seem_to_come_after_the_blocks_count():
    model = Late()
    assert find_anatomy(model)["emb.weight"].block == "output"
    same_bits, chain = kept(
        model, NextToken(model, windows=30, batch=10), (["emb.weight"], "int3"), (["head.weight"], "int2")
    )
    assert same_bits and chain.usable and not any(chain.usable.values())


class EncoderDecoder(nn.Module):
    """PyTorch's own, whose encoder ends with a norm that the anatomy takes for a part of the output."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(32, 16)
        self.inner = nn.Transformer(16, 2, 2, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 32)
        seeded(self, 4)

    def forward(self, ids):
        x = self.emb(ids)
        return self.head(self.inner(x, x))


def test_an_encoder_and_decoder_of_pytorch():
    model = EncoderDecoder()
    task = NextToken(model, windows=30, batch=10)
    with torch.no_grad():  # so that float16 changes it
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.linspace(0, 0.123, parameter.numel()))
    floats, changed = (find_anatomy(model), ["inner.encoder.norm.weight", "inner.encoder.norm.bias"])
    assert floats[changed[0]].block == "output"
    last = "inner.decoder.layers.1.linear1.weight"
    same_bits, chain = kept(
        model, task, (changed, "float16"), ([last], "int3"), (["inner.encoder.layers.1.linear1.weight"], "int2")
    )
    assert same_bits and chain.usable


def test_one_batch_alone_proves_nothing():
    model = Stashing()
    same_bits, chain = kept(model, NextToken(model, windows=30, batch=30), *TWO)
    assert same_bits and not chain.usable


def test_forward_methods_and_hooks_are_given_back():
    model, task = tied()
    model.layers[1].forward = own = model.layers[1].forward
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same_bits, chain = kept(model, task, *TWO)
    assert same_bits and any(chain.usable.values())
    assert ["forward" in vars(layer) for layer in model.layers] == [False, True, False]
    assert model.layers[1].forward == own and not model._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_change_after_a_restore_are_seen():
    model, task = tied()
    anatomy = find_anatomy(model)
    floats = Allocation.float32(anatomy)
    with Evaluator(model, anatomy, task) as evaluator:
        evaluator.measure(floats, "search")
        evaluator.restore()
        with torch.no_grad():
            model.layers[0].key.weight.mul_(-1)
        found = evaluator.measure(floats, "search")
    with Evaluator(model, anatomy, task, cache_bytes=0) as evaluator:
        assert same(found, evaluator.measure(floats, "search"))


def numbers(count, value=0.0):
    return torch.full((count,), value)


def test_a_cache_keeps_its_bound_and_pushes_out_what_was_used_least():
    cache = PrefixCache(40)
    cache.begin("first", ["a", "b"])
    for batch in range(3):
        cache.offer(0, batch, (numbers(2), None))
        cache.offer(1, batch, numbers(2))
    assert cache.bytes == 40  # the second prefix of the last batch found no room
    cache.begin("second", ["a", "c"])
    assert cache.deepest(0, lambda place: True)[0] == 0
    cache.offer(1, 0, numbers(2))  # never seen before: it must not push anything out
    assert cache.bytes == 40 and cache.deepest(0, lambda place: True)[0] == 0
    cache.begin("third", ["a", "c"])
    assert cache.deepest(0, lambda place: True)[0] == 0
    cache.offer(1, 0, numbers(2))  # seen before: the first evaluation's "b" makes way
    assert cache.bytes == 40 and cache.deepest(0, lambda place: True)[0] == 1
    assert cache.deepest(0, lambda place: place == 0)[0] == 0
    cache.begin("fourth", ["a", "b"])
    assert [cache.deepest(batch, lambda place: True)[0] for batch in range(3)] == [0, 1, 0]
    cache.begin("fifth", ["x"])
    cache.offer(0, 0, numbers(11))
    assert cache.bytes == 40 and cache.deepest(0, lambda place: True) is None
    cache.clear()
    assert cache.bytes == 0


def test_a_cache_keeps_copies_of_the_same_bits():
    cache, values = PrefixCache(1000), np.array([np.nan, -0.0, 1e-45])
    given = torch.tensor(values, dtype=torch.float32)
    cache.begin("one", ["a"])
    cache.offer(0, 0, {"x": [given, None]})
    before = given.clone()
    given.zero_()
    found = cache.deepest(0, lambda place: True)[1]
    assert found.size == 12 and found.output["x"][1] is None
    assert found.output["x"][0].view(torch.int32).equal(before.view(torch.int32))


class Rare(TiedNetwork):
    """The first block reaches over the second one where its sum is above `limit`: in some batches only."""

    limit, by_value = 0.0, False

    def forward(self, ids):
        first = self.layers[0](self.emb(ids))
        x = self.layers[1](first)
        if self.by_value:
            return self.head(self.layers[2](-x if first.sum() > self.limit else x))
        return self.head(self.layers[2](x + (first.sum() > self.limit).float()))


@pytest.mark.parametrize("by_value", [False, True])
def test_what_the_first_batch_does_not_show_is_seen_later(by_value):
    model = Rare()
    task = NextToken(model, windows=30, batch=10)
    with torch.no_grad():
        batches = sorted(task.batches("search"), key=lambda ids: float(model.layers[0](model.emb(ids[:, :-1])).sum()))
        quiet, loud = (float(model.layers[0](model.emb(ids[:, :-1])).sum()) for ids in batches[:2])
    assert quiet < loud
    model.limit, model.by_value = (quiet + loud) / 2, by_value
    tried = shuffled(3)[0]
    task.splits["search"] = [*batches[1 : tried + 1], batches[0], *batches[tried + 1 :]]
    same_bits, chain = kept(model, task, *TWO[:1])
    assert same_bits and chain.usable[1] is False
