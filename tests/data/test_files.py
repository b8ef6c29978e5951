import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm.data.files import LabelledText, load_labelled_file, load_text_file, split_halves
from qslm.errors import DataError


def write(folder, content):
    path = folder / "own.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", ["", " \n\t\n", "\x0b"])
def test_a_text_without_words_is_refused(content, tmp_path):
    with pytest.raises(DataError, match="holds no text"):
        load_text_file(write(tmp_path, content))


def test_a_text_with_nul_and_a_very_long_line_is_fine(tmp_path):
    text = "a\x00" * 500_000
    assert load_text_file(write(tmp_path, text)) == text


@given(st.text(alphabet="ab \n", max_size=80))
def test_halves_joined_are_the_text(text):
    first, second = split_halves(text)
    assert first + second == text
    assert len(text) // 4 <= len(first) <= len(text) - len(text) // 4


def test_halves_part_at_the_best_boundary_near_the_middle():
    assert split_halves("aaa bbb\n\nccc\nddd eee") == ("aaa bbb\n\n", "ccc\nddd eee")
    assert split_halves("aaa bbb\nccc ddd") == ("aaa bbb\n", "ccc ddd")
    assert split_halves("aaa bbb ccc") == ("aaa ", "bbb ccc")
    assert split_halves("a\n\nbbbbbbbbbbbbbbbbbbb")[0] == "a\n\nbbbbbbbb"


@pytest.mark.parametrize(
    "content",
    [
        "sentence\tlabel\ngood\t1\nbad\t0\n",
        "\ufeffSentence\tLabel\r\ngood\t1\r\nbad\t0\r\n",
        "good \t1\nbad\t0",
        " good\t 1 \nbad\t0\n",
        "good\t1\nbad\t0\n\n",
        "good\t1\r\nbad\t0\r\n\r\n  \n",
    ],
)
def test_tables_are_read(content, tmp_path):
    assert load_labelled_file(write(tmp_path, content)) == LabelledText(("good", "bad"), (1, 0))


def test_only_the_last_tab_parts_and_only_line_feeds_end_a_line(tmp_path):
    table = load_labelled_file(write(tmp_path, "a\tb\t1\nc\x85d\u2028e\x0cf\x00\t0\n"))
    assert table == LabelledText(("a\tb", "c\x85d\u2028e\x0cf\x00"), (1, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no sentences"),
        ("sentence\tlabel\n", "holds no sentences"),
        ("\n\n", "holds no sentences"),
        ("good\t1\n\ngood\t0\n", r"own\.tsv, line 2: the line is empty"),
        ("good\t1\n\t\n", "line 2: the label ''"),
        ("good\t1\n\t0\n", r"own\.tsv, line 2: the sentence before the label 0 is empty"),
        ("good\t1\n \t \t0\nbad\t0\n", "line 2: the sentence"),
        ("good\t1\nbad 0\n", r"own\.tsv, line 2: no tab in 'bad 0'"),
        ("sentence\tlabel\ngood\tpositive\n", r"own\.tsv, line 2: the label 'positive' is not one of .* 0 to 1"),
        ("good\t2\n", r"line 1: the label '2'"),
        ("good\t-1\n", r"line 1: the label '-1'"),
        ("good\t1.0\n", r"line 1: the label '1\.0'"),
        ("good\t\n", r"line 1: the label ''"),
        ("good\t²\n", r"line 1: the label '²'"),
        ("good\t" + "9" * 5000 + "\n", "line 1: the label '9{60}'"),
        (b"good\t1\nb\xe9te\t0\n", "line 2: byte 8 .0xe9. is not UTF-8"),
    ],
)
def test_bad_tables_are_refused_with_file_and_line(content, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        load_labelled_file(write(tmp_path, content), classes=2)
    assert caught.value.remedy


def test_without_known_classes_any_number_is_a_label(tmp_path):
    assert load_labelled_file(write(tmp_path, "a\t7\n")).labels == (7,)
    with pytest.raises(DataError, match="a number from 0 on"):
        load_labelled_file(write(tmp_path, "a\tx\n"))
