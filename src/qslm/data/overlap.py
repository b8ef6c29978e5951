"""The leak check: how many runs of words two texts share."""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qslm.errors import DataError

SIZE = 16  # words of a run
Hashes = npt.NDArray[np.uint64]
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Overlap:
    """Of the `total` different n-grams of words in a text, `shared` are in another one too."""

    shared: int
    total: int


def shared_ngrams(first: str | Sequence[str], second: str | Sequence[str], size: int = SIZE) -> Overlap:
    """How many of the different `size`-grams of words of `second` are in `first` as well.

    Each is a text, or sentences, over whose borders no n-gram reaches. Words are what white space divides, as they are
    written. A text or sentence of fewer words counts as a whole: it is shared when the other has the same one. N-grams
    are compared by 64-bit hashes, with about 50 bytes a word of memory: of ten million, two that differ are taken for
    one with a probability of about 10^-5. Raises DataError when `size` is not positive.
    """
    if size < 1:
        raise DataError(f"Runs of {size} words are none.", "Give a positive number.")
    vocabulary: dict[str, int] = {}
    one, other = (_ngrams(given, size, vocabulary) for given in (first, second))
    return Overlap(len(np.intersect1d(one, other, assume_unique=True)), len(other))


def _ngrams(given: str | Sequence[str], size: int, vocabulary: dict[str, int]) -> Hashes:
    """The hashes of the different n-grams, sorted; new words get the next ids of the vocabulary."""
    ids, lengths = array("q"), []
    for text in [given] if isinstance(given, str) else given:
        before = len(ids)
        ids.extend(vocabulary.setdefault(found[0], len(vocabulary)) for found in _WORD.finditer(text))
        if len(ids) > before:
            lengths.append(len(ids) - before)
    words = _mix(np.frombuffer(ids, dtype=np.int64).astype(np.uint64))
    sizes = np.array(lengths, dtype=np.int64)
    return np.unique(np.concatenate([_runs(words, sizes, size), _wholes(words, sizes, size)]))


def _runs(words: Hashes, sizes: npt.NDArray[np.int64], size: int) -> Hashes:
    """sum_j factor_j word_(i+j) mod 2^64 of every run that ends in the text where it starts."""
    starts = max(0, len(words) - size + 1)
    hashes = np.zeros(starts, dtype=np.uint64)
    for j, factor in enumerate(_factors(size)):
        hashes += factor * words[j : j + starts]
    complete = np.ones(len(words), dtype=bool)
    ends = np.cumsum(sizes)
    for back in range(1, size):  # a start so near to an end is of no whole run
        complete[np.maximum(ends - back, 0)] = False
    return hashes[complete[:starts]]


def _wholes(words: Hashes, sizes: npt.NDArray[np.int64], size: int) -> Hashes:
    """The same sum of every text that is shorter than a run."""
    starts = np.cumsum(sizes) - sizes
    found = np.zeros(np.count_nonzero(sizes < size), dtype=np.uint64)
    starts, sizes = starts[sizes < size], sizes[sizes < size]
    for j, factor in enumerate(_factors(size)):
        longer = sizes > j
        found[longer] += factor * words[starts[longer] + j]
    return found


def _factors(size: int) -> Hashes:
    return _mix(np.arange(size, dtype=np.uint64) + np.uint64(1 << 62)) | np.uint64(1)


def _mix(values: Hashes) -> Hashes:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): numbers that follow each other look random afterwards."""
    mixed = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Hashes = mixed ^ (mixed >> np.uint64(31))
    return result
