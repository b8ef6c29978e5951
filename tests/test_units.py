import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm.errors import BudgetError
from qslm.units import MB, MiB, format_bytes, parse_memory


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("120MiB", 120 * 2**20), ("30MB", 30_000_000), ("1.5GB", 1_500_000_000), ("1234B", 1234), ("14%", 140),
        (" 30 mb ", 30_000_000), ("0.1kB", 100), ("2KiB", 2048), ("1GiB", 2**30), ("12.34%", 123), ("100%", 1000),
        ("28.61MiB", 28.61 * 2**20 // 1), ("0.29MB", 290_000),
    ],
)  # fmt: skip
def test_amounts(text, expected):
    assert parse_memory(text, 1000) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "30", "MB", "-3MB", "+3MB", "3 M", "3TB", "1e6B", "nanMB", "infMB", ".5MB", "5.MB", "1,5MB", "٣MB",
        "0MB", "0.0%", "0.5B", "3%%", "3 MB 4", "9" * 5000 + "MB",
    ],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(BudgetError) as caught:
        parse_memory(text, 1000)
    assert "14%" in caught.value.remedy
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "spellings"),
    [("5000000", ("5000000B", "5MB")), (" 30 ", ("30B", "30MB")), ("1500000", ("1500000B", "1.5MB"))],
)
def test_a_number_alone_is_refused_with_both_readings(text, spellings):
    with pytest.raises(BudgetError, match="is not an amount of memory") as caught:
        parse_memory(text, 1000)
    assert all(f" {spelling}" in caught.value.remedy for spelling in spellings)


@given(st.integers(1, 10**12))
def test_bytes_are_exact(count):
    assert parse_memory(f"{count}B", 1) == count


def test_both_conventions_are_written():
    assert format_bytes(30 * MB) == "30.00 MB (28.61 MiB)"
    assert format_bytes(120 * MiB) == "125.83 MB (120.00 MiB)"
    assert format_bytes(1536) == "1.54 kB (1.50 KiB)"
