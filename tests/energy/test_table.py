"""Tables of energies: the one that ships, what is derived from it, and hostile files."""

import json
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm.energy import load_table, parse_table
from qslm.energy.operations import KINDS, Operation, accumulate, mac, plain
from qslm.errors import EnergyError

SHIPPED = json.loads((files("qslm.energy") / "tables" / "45nm.json").read_text())


def altered(change):
    content = json.loads(json.dumps(SHIPPED))
    change(content)
    return json.dumps(content)


def test_the_shipped_table_holds_the_published_values():
    table = load_table()
    published = {
        "add int8": 0.03, "add int16": 0.05, "add int32": 0.1, "add float16": 0.4, "add float32": 0.9,
        "multiply int8": 0.2, "multiply int32": 3.1, "multiply float16": 1.1, "multiply float32": 3.7,
    }  # fmt: skip
    for name, pj in published.items():
        assert (table.operations[name].pj, table.operations[name].derived) == (pj, False)
    assert {name for name, price in table.operations.items() if not price.derived} == set(published)
    assert {level: 8 * price.pj for level, price in table.memory.items()} == {
        "SRAM 8KB": 10, "SRAM 32KB": 20, "SRAM 1MB": 100, "DRAM": 1300,
    }  # fmt: skip
    assert "Horowitz" in table.source


@pytest.mark.parametrize(
    ("operation", "pj", "derived"),
    [
        (mac("float32", "float32", "float32"), 4.6, False),  # E_MAC of the literature on spiking networks
        (accumulate("float32", "float32"), 0.9, False),  # and its E_AC
        (mac("float16", "float16", "float16"), 1.5, False),
        (mac("int8", "int8", "int32"), 0.3, False),
        (mac("int4", "int4", "int32"), 0.15, True),
        (mac("int4", "int8", "int32"), 0.2, True),
        (mac("int3", "int8", "int32"), 0.2 * 24 / 64 + 0.1, True),
        (mac("int16", "int16", "int32"), 3.1 * 256 / 1024 + 0.1, True),
        (mac("int4", "float16", "float16"), 1.5, False),
        (mac("float16", "float32", "float32"), 4.6, False),
        (accumulate("int4", "int32"), 0.1, False),
        (plain("add", "int12"), 0.05 * 12 / 16, True),
        (plain("add", "int64"), 0.2, True),
        (plain("multiply", "float32"), 3.7, False),
        (plain("rescale", "float32"), 3.7, True),
        (plain("compare", "int32"), 0.1, True),
    ],
)
def test_operations_cost_what_follows_from_the_table(operation, pj, derived):
    price = load_table().operation(operation)
    assert price.pj == pytest.approx(pj) and price.derived == derived


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_price(kind):
    operands = ("float32", "float32") if kind == "mac" else ("int32" if kind == "shift" else "float32",)
    assert load_table().operation(Operation(kind, operands, "float32")).pj > 0


@pytest.mark.parametrize("operation", [plain("root", "int8"), plain("add", "posit8"), mac("int4", "what", "int32")])
def test_what_has_no_price_is_refused(operation):
    with pytest.raises(EnergyError):
        load_table().operation(operation)


def test_a_table_of_ones_own_is_read(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(altered(lambda c: c["operations"].update({"add int32": {"pj": 7}})))
    assert load_table(path).operation(accumulate("int4", "int32")).pj == 7


HOSTILE = {
    "a list": lambda c: c.update(operations=[]),
    "no name": lambda c: c.pop("name"),
    "an empty source": lambda c: c.update(source=""),
    "a long name": lambda c: c.update(name="x" * 2000),
    "an unknown key": lambda c: c.update(colour="red"),
    "an unknown operation": lambda c: c["operations"].update({"dream int8": {"pj": 1}}),
    "an unknown type": lambda c: c["operations"].update({"add int8 ": {"pj": 1}}),
    "a negative energy": lambda c: c["operations"]["add int8"].update(pj=-0.1),
    "a text for an energy": lambda c: c["operations"]["add int8"].update(pj="0.03"),
    "a truth for an energy": lambda c: c["operations"]["add int8"].update(pj=True),
    "an endless energy": lambda c: c["operations"]["add int8"].update(pj=1e300),
    "an integer beyond floats": lambda c: c["operations"]["add int8"].update(pj=10**400),
    "an unknown key of an entry": lambda c: c["operations"]["add int8"].update(nj=1),
    "no energy": lambda c: c["operations"]["add int8"].pop("pj"),
    "a number alone": lambda c: c["operations"].update({"add int8": 0.03}),
    "a reason that is none": lambda c: c["operations"]["add int4"].update(derived=1),
    "a lacking operation": lambda c: c["operations"].pop("multiply float16"),
    "no memory": lambda c: c.update(memory={}),
    "a memory without an energy": lambda c: c.update(memory={"DRAM": {"pj": 1}}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tables_are_refused_by_name(change):
    with pytest.raises(EnergyError, match=r"own\.json"):
        parse_table(altered(change), "own.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "nul", '{"a": NaN}', "[" * 10**5, "\ud800", '{"a": Infinity}'])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(EnergyError):
        parse_table(text, "own.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number):
    with pytest.raises(EnergyError):
        parse_table(json.dumps(SHIPPED).replace("0.03", number), "own.json")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(1 << 34)
    for path in (tmp_path, tmp_path / "none.json", large):
        with pytest.raises(EnergyError):
            load_table(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.sampled_from(["name", "source", "operations", "memory"]), JSON)
def test_whatever_stands_in_a_table_it_is_read_or_refused(key, value):
    try:
        parse_table(altered(lambda c: c.update({key: value})), "own.json")
    except EnergyError as error:
        assert "own.json" in error.problem
