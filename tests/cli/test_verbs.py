import json
import re
from pathlib import Path

import pytest
from networks.packing import pack
from networks.spikegpt import random_spikegpt
from rich.console import Console

import qslm
from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.cli.storage import templates
from qslm.errors import FormatError
from qslm.formats import Format
from qslm.quantizers import RoundedSites
from qslm.runtime import Engine
from qslm.runtime.speed import measure

SURE = ("--binary-embedding", "true")


def test_inspect_prints_the_tree_and_the_bytes(call, checkpoint):
    result = call("inspect", checkpoint, *SURE)
    assert result.exit_code == 0, result.stderr
    for word in ("attention 1", "att.key", "blocks.1.ffn.value.weight", "binarized", "MiB", "paper"):
        assert word in result.stdout
    (row,) = (line for line in result.stdout.splitlines() if "blocks.1.ffn.value.weight" in line)
    assert "16 x 32" in row
    sizes = row.split()[-13:]  # on a pipe there is room for all widths
    assert [sizes[0], sizes[5], sizes[9]] == ["2,048", "560", "296"]  # float32; codes, scales, zero points of 16 rows


@pytest.mark.parametrize(
    ("columns", "words", "heads"),
    [
        (80, (), ["32", "8", "4"]),
        (400, (), ["32", "16", "14", "12", "10", "8", "7", "6", "5", "4", "3", "2", "1"]),
        (80, ("--widths", "3,32 16"), ["32", "16", "3"]),
        (400, ("--widths", "32"), ["32"]),
    ],
)
def test_the_tree_shows_the_widths_that_fit_or_are_asked_for(call, checkpoint, monkeypatch, columns, words, heads):
    console = Console(width=columns, highlight=False)
    monkeypatch.setattr("qslm.cli.inspect.console", lambda: console)
    shown = call("inspect", checkpoint, *SURE, *words).stdout
    (line,) = (line for line in shown.splitlines() if "block, module, site" in line)
    assert re.findall(r"(\d+) bit", line) == heads


@pytest.mark.parametrize("widths", ["9", "", "32,x"])
def test_widths_that_are_none_are_refused(refused, checkpoint, widths):
    assert "--widths" in refused("inspect", checkpoint, *SURE, "--widths", widths)


def test_verify_of_nothing_says_that_it_is_not_there(refused):
    assert "nothere does not exist." in refused("verify", "nothere")


def test_inspect_counts_what_the_file_will_have(call, checkpoint):
    described = json.loads(call("inspect", checkpoint, "--json", "--group", "32", *SURE).stdout)
    widths = {w["bits"]: w for w in described["widths"]}
    assert set(widths) == {32, 16, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1}
    sizes = [widths[bits]["file_bytes"] for bits in sorted(widths)]
    assert sizes == sorted(sizes)
    assert widths[32]["paper_bytes"] == described["float32_bytes"] == 4 * described["parameters"]
    assert sum(block["parameters"] for block in described["blocks"]) == described["parameters"]
    assert sum(block["share"] for block in described["blocks"]) == pytest.approx(1)


def test_groups_say_how_their_scales_are_stored():
    texts = [str(template) for template in templates("row, 32-s8 128-s32 tensor", symmetric=True)]
    assert texts == ["int8-sym-row", "int8-sym-g32-s8", "int8-sym-g128-s32", "int8-sym-tensor"]


@pytest.mark.parametrize("group", ["32-", "32-s16", "g32-s8", "s8", "-s8", "32-s8-s8", "٣٢-s8", "tensor-s8"])
def test_other_groups_are_refused(group):
    with pytest.raises(FormatError):
        templates(f"row {group}", symmetric=False)


def test_inspect_counts_scales_of_8_bits(call, checkpoint):
    sizes = []
    for group in ("32-s32", "32", "32-s8"):
        described = json.loads(call("inspect", checkpoint, "--json", "--group", group, *SURE).stdout)
        sizes.append({width["bits"]: width["tensor_bytes"] for width in described["widths"]})
    assert all(one[bits] > two[bits] > three[bits] for one, two, three in [sizes] for bits in (8, 4, 2))


def test_eval_of_a_text_prints_what_was_promised(call, checkpoint, text):
    result = call("eval", checkpoint, "--task", "text", "--file", text, "--json", *SURE)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["metric"] == "perplexity"
    assert found["low"] < found["value"] < found["high"]
    assert found["samples"] > 2
    assert found["checkpoint"] == str(checkpoint)
    assert found["bytes"] == (checkpoint / "model.pth").stat().st_size


def test_eval_of_a_table_gives_a_fraction(call, classifier, table):
    result = call("eval", classifier, "--task", "labelled", "--file", table, "--json", *SURE)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["metric"], found["samples"]) == ("accuracy", 40)
    words = ("eval", classifier, "--task", "labelled", "--file", table, "--json", *SURE)
    assert json.loads(call(*words, "--windows", 7).stdout)["samples"] == 7
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_eval_of_one_window_or_sentence_has_a_value(call, checkpoint, classifier, tmp_path):
    (tmp_path / "own.txt").write_text("the river runs slowly")
    words = ("eval", checkpoint, "--task", "text", "--file", tmp_path / "own.txt", *SURE)
    result = call(*words, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["samples"], found["low"], found["high"]) == (1, None, None) and found["value"] > 1
    assert "One window gives no interval" in result.stderr
    shown = call(*words).stdout
    assert "95 % interval" in shown and "none" in shown and "nan" not in shown
    (tmp_path / "own.tsv").write_text("a fine film\t1\n\n")
    words = ("eval", classifier, "--task", "labelled", "--file", tmp_path / "own.tsv", *SURE)
    found = json.loads(call(*words, "--json").stdout)
    assert found["samples"] == 1 and 0 <= found["low"] < found["high"] <= 1


def test_eval_calibrates_the_embedding_on_the_data_that_is_named(call, checkpoint, text, tmp_path):
    for split in ("train", "valid", "test"):
        path = tmp_path / "wikitext-2" / f"wiki.{split}.tokens"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.read_text())
    result = call("eval", checkpoint, "--task", "text", "--file", text, "--data", tmp_path, "--windows", 2)
    assert result.exit_code == 0, result.stderr
    assert f"from {tmp_path / 'wikitext-2'}" in result.stderr and "Embedding: binarized" in result.stderr


def test_eval_for_people(call, checkpoint, text):
    result = call("eval", checkpoint, "--task", "text", "--file", text, *SURE)
    assert result.exit_code == 0, result.stderr
    assert all(word in result.stdout for word in ("perplexity", "95 % interval", "windows", "bits per byte"))


def test_generate_goes_on_with_the_prompt_and_repeats_itself(call, checkpoint):
    words = ("generate", checkpoint, "--prompt", "the river", "--tokens", 8, "--seed", 3, *SURE)
    first, again = call(*words), call(*words)
    assert first.exit_code == 0, first.stderr
    assert first.stdout.startswith("the river")
    assert first.stdout == again.stdout


def test_data_says_what_is_missing(call, refused, tmp_path):
    assert "wikitext-2" in refused("data", "--data", tmp_path)


def test_data_counts(call, tmp_path):
    for split in ("train", "valid", "test"):
        path = tmp_path / "wikitext-2" / f"wiki.{split}.tokens"
        path.parent.mkdir(exist_ok=True)
        path.write_text("one two three\nfour five\n")
    (tmp_path / "sst2").mkdir()
    rows = [f"a fine film number {i} with many more words than eight in it\t{i % 2}" for i in range(1600)]
    for name in ("train", "dev"):
        (tmp_path / "sst2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    result = call("data", "--data", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    text, table = json.loads(result.stdout)
    assert (text["calibrate"], text["search"], text["report"]) == (7, 7, 7)
    assert table["search"] == 1500


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inspect", "CHECKPOINT", "--group", "33"], "--group 33"),
        (["inspect", "CHECKPOINT", "--vectors", "int4"], "--vectors int4"),
        (["inspect", "CHECKPOINT", "--binary-embedding", "perhaps"], "perhaps"),
        (["inspect", "CHECKPOINT", "--tokenizer", "none.json"], "none.json"),
        (["eval", "CHECKPOINT", "--task", "chess"], "chess"),
        (["eval", "CHECKPOINT", "--task", "text"], "needs a file"),
        (["eval", "CHECKPOINT", "--task", "text", "--file", "none.txt"], "none.txt"),
        (["eval", "CHECKPOINT", "--task", "sst2"], "needs a classifier"),
        (["generate", "CHECKPOINT", "--prompt", "x", "--top-p", "0"], "top-p"),
        (["verify", "CHECKPOINT"], "not the folder of a packed model"),
        (["verify", "spikegpt-mini"], "spikegpt-mini ships as a checkpoint of floats"),
        (["train", "classifier", "--init", "none.pth", "-o", "out"], "none.pth"),
    ],
)
def test_bad_requests_are_refused(refused, checkpoint, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused(*(checkpoint if word == "CHECKPOINT" else word for word in words))
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_checkpoint_is_refused(refused, checkpoint, tmp_path):
    whole = (checkpoint / "model.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    assert "cut.pth" in refused("inspect", tmp_path / "cut.pth")


def test_bench_measures_a_packed_model(call, refused, tmp_path):
    model = random_spikegpt(vocabulary=40, width=32, layers=2)
    allocation = Allocation.uniform(find_anatomy(model), Format.parse("int4-row"))
    sites = RoundedSites(model.state_dict(), allocation)
    artifact.write(tmp_path / "packed", sites, allocation, config=model.config.to_dict())
    found = json.loads(
        call("bench", tmp_path / "packed", "--tokens", 4, "--prompt", 8, "--threads", 1, "--json").stdout
    )
    assert found["decoding"] > 0 and found["prefill"] > 0 and found["bandwidth"] > 1e6 and found["threads"] == 1
    assert 0 < found["bytes_per_token"] < found["file_bytes"]
    assert found["share"] == pytest.approx(found["bytes_per_token"] * found["decoding"] / found["bandwidth"], rel=2)
    assert "config.json" in refused("bench", tmp_path)


def test_bench_decodes_as_many_tokens_as_it_counts(tmp_path, monkeypatch):
    seen = []
    pack(random_spikegpt(vocabulary=40, width=32, layers=2), tmp_path, "int4-row")
    advance = Engine.advance
    monkeypatch.setattr(Engine, "advance", lambda engine, ids: (seen.append(len(ids)), advance(engine, ids))[1])
    for prompt, tokens in ((8, 3), (3, 8)):
        seen.clear()
        measure(tmp_path, threads=1, tokens=tokens, prompt=prompt, turns=1)
        assert seen == 2 * [prompt, *[1] * tokens]


def test_eval_says_by_how_much_the_engine_differs(call, tmp_path):
    folder, text = tmp_path / "packed", tmp_path / "text.txt"
    tokenizer = (Path(qslm.__file__).parent / "checkpoints" / "spikegpt-mini" / "tokenizer.json").read_text()
    pack(random_spikegpt(vocabulary=4096, width=32, layers=2), folder, "int2-row", tokenizer)
    text.write_text("The river runs to the sea , and the sea is wide . " * 60)
    words = ["eval", folder, "--task", "text", "--file", text, "--engine", "native", "--context", 64]
    found = json.loads(call(*words, "--json").stdout)
    assert found["difference_unit"] == "%" and found["value"] != found["torch"]
    assert found["difference"] == pytest.approx(100 * (found["value"] / found["torch"] - 1), rel=1e-3)
    assert f"{found['difference']:+.4f}" in call(*words).stdout


def test_an_engine_that_is_none_or_cannot_be_had_is_refused(refused, tmp_path):
    assert "no engine 'cuda'" in refused("generate", "spikegpt-mini", "--prompt", "x", "--engine", "cuda")
    assert "not a packed model" in refused("generate", "spikegpt-mini", "--prompt", "x", "--engine", "native")
