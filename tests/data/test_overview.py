"""What `describe_data` finds."""

import pytest

from qslm.data.overview import describe_data
from qslm.errors import DataError


def test_sizes_are_those_of_the_published_data(data_folder):
    text, sentences = describe_data(data_folder)
    assert (text.task, text.unit, text.sizes) == ("wikitext2", "words", (2_088_628, 217_646, 245_569))
    assert sentences.sizes[1:] == (1500, 872)


def test_a_folder_without_the_data_is_an_error(tmp_path):
    with pytest.raises(DataError):
        describe_data(tmp_path)


def test_what_is_not_found_is_told(monkeypatch):
    def nothing(*_):
        raise DataError("not here", "put it there")

    monkeypatch.setattr("qslm.data.overview.load_sst2", nothing)
    monkeypatch.setattr("qslm.data.overview.load_wikitext2", nothing)
    assert [(finding.source, finding.sizes) for finding in describe_data()] == [(None, ()), (None, ())]
