import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm.data.overlap import Overlap, shared_ngrams
from qslm.errors import DataError


def naive(given, size):
    """All runs of `size` words, and whole texts that are shorter, as tuples."""
    texts = [text.split() for text in ([given] if isinstance(given, str) else given)]
    runs = {tuple(words[i : i + size]) for words in texts for i in range(len(words) - size + 1)}
    return runs | {tuple(words) for words in texts if 0 < len(words) < size}


texts = st.lists(st.sampled_from(["a", "b", "ü", "the", "A"]), max_size=30).map(" \n".join)
either = st.one_of(texts, st.lists(texts, max_size=8))


@given(either, either, st.integers(1, 6))
def test_counts_are_those_of_sets_of_runs(first, second, size):
    one, other = naive(first, size), naive(second, size)
    assert shared_ngrams(first, second, size) == Overlap(len(one & other), len(other))


@given(either, either)
def test_runs_have_sixteen_words_unless_one_says(first, second):
    assert shared_ngrams(first, second) == shared_ngrams(first, second, 16)


def test_a_copied_passage_is_found_and_its_neighbours_are_not():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 500, 5000).astype(str) for _ in range(2))
    second[1000:1020] = first[70:90]
    assert shared_ngrams(" ".join(first), " ".join(second)) == Overlap(5, 4985)
    assert shared_ngrams(" ".join(first), " ".join(second[:1010])).shared == 0


def test_no_run_reaches_over_the_border_of_a_sentence():
    assert shared_ngrams("a b c d", ["a b", "c d"], 3) == Overlap(0, 2)
    assert shared_ngrams(["a b", "c d"], ["c d", "d c", "c d"], 3) == Overlap(1, 2)
    assert shared_ngrams("", ["", " "], 3) == Overlap(0, 0)


def test_one_word_tells_long_texts_apart_in_little_memory():
    words = np.random.default_rng(1).integers(0, 3000, 200_000).astype(str)
    changed = words.copy()
    changed[100_000] = "other"
    first, second = " ".join(words), " ".join(changed)
    tracemalloc.start()
    found = shared_ngrams(first, second)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == Overlap(200_000 - 15 - 16, 200_000 - 15)
    assert peak < 60 * len(words)


def test_runs_of_no_words_are_refused():
    with pytest.raises(DataError, match="Runs of 0 words"):
        shared_ngrams("a", "a", 0)
