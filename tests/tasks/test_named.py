import pytest

from qslm.errors import DataError, TaskError
from qslm.tasks import make_task

LANGUAGE = {"vocabulary_size": 300, "context_length": 16, "classes": None}
CLASSIFIER = {"vocabulary_size": 300, "context_length": 32, "classes": 2}


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("the film is good .\n\n" * 40, encoding="utf-8")
    return path


@pytest.fixture
def table_file(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"film {n}\t{n % 2}\n" for n in range(31)), encoding="utf-8")
    return path


def test_a_text_has_two_halves_and_all(text_file, small_tokenizer):
    task = make_task("text", tokenizer=small_tokenizer, config=LANGUAGE, file=text_file)
    assert (task.name, task.metric, task.higher_is_better, task.unit) == ("text", "perplexity", False, "window")
    assert (task.evaluation_split, task.source) == ("all", str(text_file))
    predicted = {s: sum(b.ids.numel() for b in task.batches(s)) + 1 for s in ("search", "report", "all")}
    assert predicted["search"] == predicted["report"]
    assert predicted["search"] + predicted["report"] == predicted["all"]
    assert task.batches("all")[0].ids.shape == (16, 16)


def test_paths_may_be_texts(text_file, table_file, small_tokenizer):
    text = make_task("text", tokenizer=small_tokenizer, config=LANGUAGE, file=str(text_file))
    assert text.source == str(text_file) and text.batches("all")
    table = make_task("labelled", tokenizer=small_tokenizer, config=CLASSIFIER, file=str(table_file))
    assert table.batches("all")
    with pytest.raises(DataError, match="no wikitext-2"):
        make_task("wikitext2", tokenizer=small_tokenizer, config=LANGUAGE, data=str(text_file.parent))


def test_the_context_is_the_models_unless_it_is_given(text_file, small_tokenizer):
    for config, context, expected in [(LANGUAGE, None, 16), (LANGUAGE, 5, 5), ({}, None, 256)]:
        task = make_task("text", tokenizer=small_tokenizer, config=config, file=text_file, context=context)
        assert task.batches("all")[0].ids.shape[1] == expected


def test_a_table_has_two_halves_and_all(table_file, small_tokenizer):
    task = make_task("labelled", tokenizer=small_tokenizer, config=CLASSIFIER, file=table_file)
    sizes = {split: sum(len(batch.ids) for batch in task.batches(split)) for split in ("search", "report", "all")}
    assert sizes == {"search": 15, "report": 16, "all": 31}
    again = make_task("labelled", tokenizer=small_tokenizer, config=CLASSIFIER, file=table_file)
    assert again.fingerprint("search") == task.fingerprint("search") != task.fingerprint("report")


def test_a_limit_of_windows_limits_sentences(table_file, small_tokenizer):
    task = make_task("labelled", tokenizer=small_tokenizer, config=CLASSIFIER, file=table_file, windows={"search": 2})
    assert task.facts()["search sentences"] == sum(len(batch.ids) for batch in task.batches("search")) == 2
    assert task.facts()["report sentences"] > 2


def test_labels_outside_the_models_classes_are_named(table_file, small_tokenizer):
    with pytest.raises(DataError, match=r"own\.tsv, line 3: the label '1'"):
        make_task("labelled", tokenizer=small_tokenizer, config={**CLASSIFIER, "classes": 1}, file=table_file)


def test_sst2_and_wikitext2_have_their_splits(data_folder, small_tokenizer):
    sst2 = make_task("sst2", tokenizer=small_tokenizer, config=CLASSIFIER, data=data_folder)
    assert sum(len(batch.ids) for batch in sst2.batches("report")) == 872
    assert sst2.evaluation_split == "report"
    assert sst2.source == f"SST-2 from {data_folder / 'sst2'}"
    wikitext2 = make_task("wikitext2", tokenizer=small_tokenizer, config=LANGUAGE, data=data_folder, windows=20)
    for split in ("calibrate", "search", "report"):
        assert [batch.ids.shape for batch in wikitext2.batches(split)] == [(16, 16), (4, 16)]


@pytest.mark.parametrize(
    ("name", "config", "options", "message"),
    [
        ("mnli", LANGUAGE, {}, "The tasks are: wikitext2, text, sst2, labelled"),
        ("text", LANGUAGE, {}, "needs a file"),
        ("wikitext2", LANGUAGE, {"file": "own.txt"}, "reads no file"),
        ("sst2", LANGUAGE, {}, "qslm train classifier"),
        ("wikitext2", CLASSIFIER, {}, "needs a language model"),
        ("text", LANGUAGE, {"file": "own.txt", "tokenizer": None}, "--tokenizer FILE"),
    ],
)
def test_what_does_not_suit_is_refused_with_a_remedy(name, config, options, message, small_tokenizer):
    with pytest.raises(TaskError, match=message):
        make_task(name, **{"tokenizer": small_tokenizer, "config": config, **options})


def test_a_model_of_other_classes_does_not_do_sst2(data_folder, small_tokenizer):
    with pytest.raises(TaskError, match="SST-2 has 2 classes, but the model has 5"):
        make_task("sst2", tokenizer=small_tokenizer, config={**CLASSIFIER, "classes": 5}, data=data_folder)


def test_an_empty_text_is_refused(tmp_path, small_tokenizer):
    (tmp_path / "own.txt").write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        make_task("text", tokenizer=small_tokenizer, config=LANGUAGE, file=tmp_path / "own.txt")
