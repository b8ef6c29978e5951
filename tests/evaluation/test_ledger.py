import hashlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qslm.errors import LedgerError
from qslm.evaluation import Evaluation, Ledger
from qslm.tasks.task import Losses

IDENTITY = {"checkpoint": "abc", "task": {"name": "wikitext2", "search": "f00"}, "threads": 2}


def evaluation(seed=0, value=1.5, units=7):
    values = np.random.default_rng(seed).normal(size=units) * 1e3
    losses = Losses(values, np.arange(1.0, units + 1), tokens=99)
    return Evaluation("perplexity", value, 1.0, 2.0, losses, 12345, 0.25, {"bits_per_byte": 1.1}, 2**40)


def partial(places, **options):
    whole = evaluation(units=len(places), **options)
    losses = replace(whole.losses, units=np.array(places))
    return replace(whole, losses=losses, details={}, complete=False)


def put_partial(ledger, places, text="{}", **options):
    key = hashlib.sha256(text.encode()).hexdigest()
    ledger.put(key, "search", text, "global", "begun", partial(places, **options))
    return key


def put(ledger, text="{}", split="search", **options):
    key = hashlib.sha256(text.encode()).hexdigest()
    ledger.put(key, split, text, "global", "all at int8", evaluation(**options))
    return key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ledger.sqlite"


def test_what_is_put_comes_back_bit_for_bit_and_in_order(path):
    with Ledger.open(path, IDENTITY) as ledger:
        keys = [put(ledger, f"[{index}]", seed=index) for index in range(5)]
        put(ledger, "[0]", split="report", value=float("inf"))
        assert ledger.get(keys[0], "calibrate") is None
    with Ledger.open(path, IDENTITY) as ledger, Ledger.read(path) as reader:
        assert [row.key for row in reader.rows("search")] == keys
        found, wanted = ledger.get(keys[3], "search"), evaluation(3)
        assert found.losses.values.tobytes() == wanted.losses.values.tobytes()
        assert found.losses.weights.tobytes() == wanted.losses.weights.tobytes()
        assert (found.value, found.low, found.high, found.tokens) == (1.5, 1.0, 2.0, 99)
        assert (found.footprint_file, found.seconds, found.details) == (12345, 0.25, {"bits_per_byte": 1.1})
        assert (found.work, found.complete, found.losses.units) == (2**40, True, None)
        assert ledger.get(keys[0], "report").value == float("inf")
        assert reader.identity == IDENTITY
        row = reader.rows("search")[2]
        assert (row.number, row.tier, row.note, row.allocation) == (3, "global", "all at int8", "[2]")


def test_not_a_number_survives(path):
    with Ledger.open(path, IDENTITY) as ledger:
        assert np.isnan(ledger.get(put(ledger, value=float("nan")), "search").value)


def test_another_identity_is_refused_and_every_difference_named(path):
    Ledger.open(path, IDENTITY).close()
    other = {"checkpoint": "abd", "task": {"name": "wikitext2", "search": "ba4"}, "version": "1"}
    with pytest.raises(LedgerError) as caught:
        Ledger.open(path, other)
    for difference in ("checkpoint was abc, is abd", "task.search was f00, is ba4", "threads was 2, is absent"):
        assert difference in str(caught.value)
    assert "version was absent, is 1" in str(caught.value) and "task.name" not in str(caught.value)
    Ledger.open(path, IDENTITY).close()


def test_facts_say_in_words_why_the_data_differ(path):
    facts = {"search windows": 64, "report windows": "all", "context": 256, "source": "own.txt"}
    first = {"data": {"search": "f00", "report": "f01"}, "facts": facts, "machine": {"threads": 1}}
    Ledger.open(path, first).close()
    Ledger.open(path, {**first, "facts": {**facts, "source": "same/text.txt"}}).close()
    other = {"data": {"search": "ba4", "report": "f01"}, "machine": {"threads": 2}}
    with pytest.raises(LedgerError) as caught:
        Ledger.open(path, {**other, "facts": {**facts, "search windows": 128}})
    assert caught.value.problem == (
        f"{path} belongs to another study: search windows 64 then, 128 now (--windows); "
        "machine.threads was 1, is 2 (--threads)."
    )
    with pytest.raises(LedgerError, match=r"data\.search was f00, is ba4"):
        Ledger.open(path, {**other, "facts": facts})


def test_where_the_checkpoint_is_another_no_option_is_blamed_for_what_comes_with_it(path):
    first = {"checkpoint": {"digest": "c0"}, "data": {"search": "f00"}, "facts": {"context": 256}}
    Ledger.open(path, first).close()
    with pytest.raises(LedgerError) as caught:
        Ledger.open(path, {"checkpoint": {"digest": "c1"}, "data": {"search": "ba4"}, "facts": {"context": 1024}})
    assert caught.value.problem == (
        f"{path} belongs to another study: checkpoint.digest was c0, is c1 (other weights); context 256 then, 1024 now."
    )


def test_a_second_writer_is_refused_a_reader_is_not(path):
    with Ledger.open(path, IDENTITY) as ledger:
        put(ledger)
        with pytest.raises(LedgerError, match="Another study is running"):
            Ledger.open(path, IDENTITY)
        with Ledger.read(path) as reader:
            assert len(reader.rows("search")) == 1
    Ledger.open(path, IDENTITY).close()


def test_the_same_evaluation_twice_is_refused(path):
    with Ledger.open(path, IDENTITY) as ledger:
        put(ledger)
        with pytest.raises(LedgerError, match="already"):
            put(ledger)


def test_estimates_are_kept_under_their_key_and_checked(path):
    with Ledger.open(path, IDENTITY) as ledger:
        ledger.put_estimate("int4", '{"costs":[]}')
        assert ledger.estimate("int4") == '{"costs":[]}'
        assert ledger.estimate("int8") is None
        with pytest.raises(LedgerError, match="already"):
            ledger.put_estimate("int4", "{}")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE estimates SET text = '{}'")
    with Ledger.read(path) as ledger, pytest.raises(LedgerError, match="not as it was written"):
        ledger.estimate("int4")


def test_texts_that_are_not_utf8_are_damage(path):
    with Ledger.open(path, IDENTITY) as ledger:
        key = put(ledger)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE evaluations SET note = CAST(x'fffe' AS TEXT)")
    with Ledger.read(path) as ledger, pytest.raises(LedgerError, match="damaged: a text in it is not UTF-8"):
        ledger.get(key, "search")


def test_a_partial_evaluation_makes_way_for_what_goes_on_with_it(path):
    with Ledger.open(path, IDENTITY) as ledger:
        key = put_partial(ledger, [2, 5, 9], seed=1)
        put(ledger, "[1]")
        put_partial(ledger, [0, 2, 5, 9], seed=2)
        found = ledger.get(key, "search")
        assert found.losses.units.tolist() == [0, 2, 5, 9] and found.losses.units.dtype == np.int64
        assert not found.complete and found.losses.values.tobytes() == evaluation(2, units=4).losses.values.tobytes()
        assert put(ledger, seed=3) == key
        assert [(row.number, row.note) for row in ledger.rows("search")] == [(1, "all at int8"), (2, "all at int8")]
        assert ledger.get(key, "search").complete and ledger.get(key, "search").losses.units is None
        for again in (lambda: put(ledger), lambda: put_partial(ledger, [1])):
            with pytest.raises(LedgerError, match="already"):
                again()
        with pytest.raises(LedgerError, match="which units"):
            ledger.put("key", "search", "{}", "global", "", replace(evaluation(), complete=False))


def test_a_full_disk_leaves_the_partial_evaluation(path):
    with Ledger.open(path, IDENTITY) as ledger:
        key = put_partial(ledger, [1, 2])
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match="full"):
            put(ledger, units=100_000)
        assert ledger.get(key, "search").losses.units.tolist() == [1, 2]


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be one" * 30, b"SQLite format 3\0"])
def test_a_foreign_file_is_refused(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    for opening in (lambda: Ledger.open(path, IDENTITY), lambda: Ledger.read(path)):
        with pytest.raises(LedgerError, match="damaged"):
            opening()
    assert path.read_bytes() == content


def test_another_database_is_refused(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger.open(path, IDENTITY)


@pytest.mark.parametrize("column", ["losses", "weights", "value", "tokens", "file_bytes", "tier", "details", "work"])
def test_a_row_that_was_changed_is_refused(path, column):
    changed = {"losses": evaluation(9).losses.values.tobytes(), "weights": np.ones(7).tobytes(), "details": "{}"}
    with Ledger.open(path, IDENTITY) as ledger:
        put(ledger)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE evaluations SET {column} = ?", (changed.get(column, 7),))
    connection.close()
    with Ledger.read(path) as ledger, pytest.raises(LedgerError, match="evaluation 1: it is not as it was written"):
        ledger.rows("search")


def test_random_damage_is_an_error_of_our_own_or_harmless(path):
    with Ledger.open(path, IDENTITY) as ledger:
        for index in range(30):
            put(ledger, f"[{index}]", seed=index)
        before = [row.evaluation.losses.values.tobytes() for row in ledger.rows("search")]
    whole, random, refused = path.read_bytes(), np.random.default_rng(4), 0
    for _ in range(60):
        damaged = bytearray(whole[: random.integers(len(whole) // 2, len(whole) + 1)])
        for place in random.integers(0, len(damaged), 20):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            with Ledger.open(path, IDENTITY) as ledger:
                assert len(ledger.rows("search")) <= len(before)
        except LedgerError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("losses", b"12345", "8-byte"),
        ("losses", b"12345678", "1 losses but 7 weights"),
        ("weights", "text", "8-byte"),
        ("allocation", "[1]", "digest"),
        ("details", "[]", "evaluation 1"),
        ("seconds", "soon", "evaluation 1"),
        ("units", b"1234", "8-byte"),
        ("units", "text", "8-byte"),
        ("units", np.arange(6).tobytes(), "7 losses but 6 places"),
        ("units", np.arange(-1, 6).tobytes(), "do not rise from 0"),
        ("units", np.array([0, 1, 2, 3, 4, 5, 5]).tobytes(), "do not rise from 0"),
        ("work", "much", "evaluation 1"),
        ("work", -1, "its work is -1"),
    ],
)
def test_altered_rows_are_refused(path, column, value, problem):
    with Ledger.open(path, IDENTITY) as ledger:
        key = put(ledger)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE evaluations SET {column} = ?", (value,))
    connection.close()
    with Ledger.read(path) as ledger, pytest.raises(LedgerError, match=problem):
        ledger.get(key, "search")


def test_where_nothing_can_be_written_it_says_so(path, tmp_path):
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.read(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"cannot be used: .*\nChoose a folder that can be written"):
        Ledger.open(tmp_path / "file" / "run" / "ledger.sqlite", IDENTITY)
    with pytest.raises(LedgerError, match=r"cannot be used: .*\nChoose a folder that can be written"):
        Ledger.open(Path("/proc/no/ledger.sqlite"), IDENTITY)


def test_a_full_disk_loses_no_earlier_evaluation(path):
    with Ledger.open(path, IDENTITY) as ledger:
        put(ledger, "[0]")
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match="full"):
            put(ledger, "[1]", units=100_000)
        assert [row.allocation for row in ledger.rows("search")] == ["[0]"]


@pytest.mark.parametrize("table", ["identity", "estimates", "evaluations"])
def test_a_ledger_without_one_of_its_tables_is_damaged(path, table):
    with Ledger.open(path, IDENTITY) as ledger:
        put(ledger)
    with sqlite3.connect(path) as connection:
        connection.execute(f"DROP TABLE {table}")
    connection.close()
    for ask in (lambda: Ledger.open(path, IDENTITY), lambda: Ledger.read(path)):
        with pytest.raises(LedgerError, match=f"is damaged: it has no table {table}"):
            ask()
