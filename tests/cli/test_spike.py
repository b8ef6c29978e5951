"""`qslm spike`: what it packs is opened by the other verbs, and what it is not asked rightly is refused."""

import json

import pytest

SURE = ("--binary-embedding", "true")


def words(checkpoint, text, folder, *more):
    few = ("--calibrate", 4, "--windows", 6, "--quantizer", "clip")
    return ("spike", checkpoint, "-o", folder, "--task", "text", "--file", text, *SURE, *few, *more)


@pytest.fixture(scope="module")
def packed(checkpoint, text, tmp_path_factory):
    from typer.testing import CliRunner

    from qslm.cli.main import app

    folder = tmp_path_factory.mktemp("spiking") / "packed"
    result = CliRunner().invoke(app, [str(word) for word in words(checkpoint, text, folder)])
    assert result.exit_code == 0, result.stderr
    return folder, result.stdout


def test_the_terminal_shows_the_layers_and_what_the_spikes_cost(packed):
    _, shown = packed
    for word in (
        "blocks.1.ffn.value",
        "salient",
        "On 3 windows of the search split the spikes cost",
        "counts: 0.0%",
        "squared ReLU",
    ):
        assert word in shown


def test_the_other_verbs_open_it(packed, call, text):
    folder, _ = packed
    for asked in (("verify",), ("inspect",), ("generate", "--prompt", "the river", "--tokens", 3)):
        result = call(asked[0], folder, *asked[1:])
        assert result.exit_code == 0, result.stderr
    result = call("energy", folder, "--task", "text", "--file", text, "--tokens", 40, "--format", "int4-row")
    assert result.exit_code == 2 and "holds integers already" in result.stderr
    result = call("eval", folder, "--task", "text", "--file", text, "--split", "search", "--windows", 6, "--json")
    assert json.loads(result.stdout)["value"] > 1


def test_json_has_every_layer_and_the_same_command_packs_the_same_bytes(packed, call, checkpoint, text, tmp_path):
    folder, _ = packed
    result = call(*words(checkpoint, text, tmp_path / "again", "--json"))
    content = json.loads(result.stdout)
    assert len(content["layers"]) == 14 and content["outputs_as_counts"] == 0
    assert content["loss"]["low"] <= content["loss"]["loss"] <= content["loss"]["high"]
    assert 0 < content["salient_ratio"] < 0.2 and 4 < content["activation_bits"] < 16
    one, other = ((place / "model.safetensors").read_bytes() for place in (folder, tmp_path / "again"))
    assert one == other and content["bytes"] == len(one)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--ratio", "many"), "is no share"),
        (("--ratio", "70%"), "not between 0 and 0.5"),
        (("--ratio", "5%", "--threshold", "3"), "Both --ratio and --threshold"),
        (("--threshold", "0"), "no modified z-score"),
        (("--bits", "1"), "No encoding has 1 bits"),
        (("--clip", "0"), "a clip of 0"),
        (("--weights", "12"), "do not fit into int8"),
        (("--quantizer", "awq"), "rounds no weights of spiking layers"),
        (("--kv-bits", "4"), "SpikeGPT has no KV cache"),
        (("--kv-bits", "9"), "A KV cache of 9 bits"),
        (("--kv-bits", "4", "--float-weights"), "float weights make none"),
        (("--next-step", "dynamic"), "Without a KV cache of integers"),
        (("--ratio", "60%"), "not between 0 and 0.5"),
        (("--next-step", "soon"), "A next step is not 'soon'"),
        (("--rotate",), "No rotation folds into SpikeGPT"),
    ],
)
def test_what_is_not_possible_is_refused(more, told, call, checkpoint, text, tmp_path):
    result = call(*words(checkpoint, text, tmp_path / "packed", *more))
    assert result.exit_code == 2 and told in result.stderr
    assert not (tmp_path / "packed").exists()


def test_a_spiking_model_and_a_folder_with_something_else_are_refused(packed, call, checkpoint, text, tmp_path):
    result = call(*words(packed[0], text, tmp_path / "twice"))
    assert result.exit_code == 2 and "is spiking already" in result.stderr
    result = call(*words(checkpoint, text, checkpoint))
    assert result.exit_code == 2 and "is the folder of a checkpoint" in result.stderr


@pytest.fixture(scope="module")
def llama(checkpoint, tmp_path_factory):
    """The folder of a tiny Llama with the tokenizer of the others."""
    pytest.importorskip("transformers", reason="needs pip install 'qslm[llama]'")
    from networks.llama import tiny

    folder = tmp_path_factory.mktemp("llama")
    tiny(vocabulary=300).save_pretrained(folder)
    (folder / "tokenizer.json").write_text((checkpoint / "tokenizer.json").read_text())
    return folder


@pytest.mark.parametrize("next_step", ["static", "dynamic"])
def test_a_cache_of_integers_is_told_packed_and_measured_alike(next_step, llama, text, call, tmp_path):
    few = ("--calibrate", 4, "--windows", 6, "--quantizer", "clip", "--kv-bits", 4, "--next-step", next_step)
    asked = ("--task", "text", "--file", text)
    result = call("spike", llama, "-o", tmp_path / "packed", *asked, *few, "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["cache"] == 4 and content["outputs_as_counts"] == pytest.approx(8 / 168)
    assert sum(content["outputs"].values()) == pytest.approx(1) and "the mixture by softmax" not in content["outputs"]
    again = call("eval", tmp_path / "packed", *asked, "--split", "search", "--windows", 6, "--json")
    assert json.loads(again.stdout)["value"] == pytest.approx(content["spikes"], rel=1e-6)
    told = call("generate", tmp_path / "packed", "--prompt", "the river", "--tokens", 3)
    assert told.exit_code == 0, told.stderr


def test_the_terminal_says_how_the_cache_is_held(llama, text, call, tmp_path):
    few = ("--calibrate", 2, "--windows", 4, "--quantizer", "clip", "--kv-bits", 3)
    result = call("spike", llama, "-o", tmp_path / "packed", "--task", "text", "--file", text, *few)
    assert result.exit_code == 0, result.stderr
    for words_ in ("spike counts: 4.8%", "RoPE 19.0%", "KV cache: 3 bits"):
        assert words_ in result.stdout
