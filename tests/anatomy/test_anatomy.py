import time

import pytest
import torch
from torch import nn

from qslm.anatomy.find import find_anatomy
from qslm.errors import AllocationError


class Block(nn.Module):
    def __init__(self, width=4, first=False):
        super().__init__()
        if first:
            self.ln0 = nn.LayerNorm(width)
        self.ln1 = nn.LayerNorm(width)
        self.att = nn.ModuleDict({"key": nn.Linear(width, width), "value": nn.Linear(width, width, bias=False)})
        self.time_mix = nn.Parameter(torch.ones(1, 1, width))
        self.register_buffer("average", torch.zeros(width, width))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class Network(nn.Module):
    def __init__(self, blocks=3, tied=False):
        super().__init__()
        self.emb = nn.Embedding(10, 4)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(Block(first=index == 0) for index in range(blocks))
        self.ln_out = nn.LayerNorm(4)
        self.transforms = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(blocks))
        self.head = nn.Linear(4, 10, bias=False)
        if tied:
            self.head.weight = self.emb.weight


def test_the_main_list_at_any_depth_is_the_attention_blocks():
    model = Network()
    anatomy = find_anatomy(model)
    assert anatomy.blocks == ("input", "attention 0", "attention 1", "attention 2", "output")
    assert anatomy.modules("input") == ("emb",)
    assert anatomy.modules("attention 0") == (".", "ln0", "ln1", "att.key", "att.value")
    assert anatomy.modules("output")[0] == "ln_out" and anatomy.modules("output")[-1] == "head"
    floats = {name for name, value in model.state_dict().items() if value.is_floating_point()}
    assert [site.name for site in anatomy.sites] == [name for name in model.state_dict() if name in floats]
    assert anatomy.float32_bytes == 4 * sum(model.state_dict()[name].numel() for name in floats)


def test_vectors_buffers_and_matrices():
    anatomy = find_anatomy(Network())
    assert anatomy["encoder.layers.0.time_mix"].is_vector
    assert anatomy["encoder.layers.1.average"].kind == "buffer" and anatomy["encoder.layers.1.average"].is_vector
    assert not anatomy["encoder.layers.1.att.key.weight"].is_vector
    assert "encoder.layers.1.scratch" not in anatomy and "encoder.layers.1.count" not in anatomy
    with pytest.raises(AllocationError, match="no site"):
        anatomy["nowhere"]


@pytest.mark.parametrize("wrap", [lambda m: nn.Sequential(m), lambda m: nn.ModuleDict({"module": m})])
def test_a_wrapper_changes_names_only(wrap):
    plain, wrapped = find_anatomy(Network()), find_anatomy(wrap(Network()))
    assert [site.block for site in plain.sites] == [site.block for site in wrapped.sites]
    assert plain.modules("attention 1") == wrapped.modules("attention 1")


def test_one_layer_is_still_an_attention_block():
    assert find_anatomy(Network(blocks=1)).blocks == ("input", "attention 0", "output")


def test_a_tied_head_is_one_site_of_the_input():
    plain, tied = find_anatomy(Network()), find_anatomy(Network(tied=True))
    site = tied["head.weight"]
    assert site is tied["emb.weight"] and site.aliases == ("head.weight",) and site.block == "input"
    assert plain.float32_bytes - tied.float32_bytes == 4 * 40


def test_a_binarized_embedding_is_marked_unless_another_module_reads_its_values():
    free, tied = Network(), Network(tied=True)
    free.emb.binarized = tied.emb.binarized = True
    assert find_anatomy(free)["emb.weight"].binarized
    assert not find_anatomy(tied)["emb.weight"].binarized


def test_a_block_used_twice_is_decided_once():
    block = Block()
    model = nn.ModuleDict({"emb": nn.Embedding(9, 4), "layers": nn.ModuleList([block, block, block])})
    anatomy = find_anatomy(model)
    assert anatomy.blocks == ("input", "attention 0")
    assert anatomy["layers.2.att.key.weight"].name == "layers.0.att.key.weight"


def test_a_sequential_with_input_and_head_inside():
    model = nn.Sequential(nn.Embedding(9, 4), Block(), Block(), nn.LayerNorm(4), Block(), nn.Linear(4, 2))
    anatomy = find_anatomy(model)
    assert anatomy.blocks == ("input", "attention 0", "attention 1", "attention 2", "output")
    assert anatomy.modules("input") == ("0",) and anatomy.modules("output") == ("5",)
    assert {site.block for site in anatomy.sites if site.name.startswith("3.")} == {"attention 1"}


def test_decoder_blocks_follow_encoder_blocks():
    model = nn.Transformer(8, 2, batch_first=True, num_encoder_layers=2, num_decoder_layers=3, dim_feedforward=16)
    anatomy = find_anatomy(model)
    assert anatomy.blocks == (*(f"attention {index}" for index in range(5)), "output")
    assert "self_attn.out_proj" in anatomy.modules("attention 4")


def test_stacked_containers_are_not_taken_for_blocks():
    model = nn.Sequential(
        nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4)),
        nn.Sequential(Block(), Block()),
        nn.Sequential(nn.Linear(4, 2)),
    )
    assert find_anatomy(model).blocks == ("input", "attention 0", "attention 1", "output")


def test_layers_that_do_not_repeat_are_a_block_each():
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 2))
    anatomy = find_anatomy(model)
    assert anatomy.blocks == ("input", "attention 0", "attention 1", "output")
    assert anatomy["1.weight"].block == "input" and anatomy["3.weight"].block == "attention 1"
    assert find_anatomy(nn.Linear(3, 5)).blocks == ("attention 0",)
    assert find_anatomy(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))).blocks == ("input", "output")


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(AllocationError, match="no parameters"):
        find_anatomy(nn.ReLU())
    with pytest.raises(AllocationError, match="complex"):
        find_anatomy(nn.ParameterDict({"w": nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))}))
    with pytest.raises(AllocationError, match="lazy"):
        find_anatomy(nn.LazyLinear(3))
    overlapping = nn.Linear(4, 4)
    overlapping.extra = nn.Parameter(overlapping.weight.detach().view(2, 8))
    with pytest.raises(AllocationError, match="share memory"):
        find_anatomy(overlapping)


def test_a_thousand_sites_take_milliseconds():
    model = nn.ModuleDict({"emb": nn.Embedding(9, 4), "layers": nn.ModuleList(Block() for _ in range(150))})
    seconds = []
    for _ in range(3):
        start = time.process_time()
        anatomy = find_anatomy(model)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2
    assert len(anatomy.sites) > 1000 and len(anatomy.blocks) == 151
    assert anatomy == find_anatomy(model)
