"""A tiny folder of data in the layout of QSLM_DATA, one thread, and a training that can be killed at a step."""

import random

import pytest
import torch

import qslm.data.sst2
from qslm.training import loop

WORDS = ["the", "a", "film", "plot", "end", "is", "was", "slow", "great", "dull", "long", "short", "fine", "and", "of"]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """WikiText-2 and SST-2 made of a few words; positive sentences hold `good`, negative ones `bad`."""
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    (folder / "wikitext-2").mkdir()
    (folder / "sst2").mkdir()
    for part, lines in (("train", 300), ("valid", 30), ("test", 10)):
        text = "".join(" ".join(draw.choices(WORDS, k=12)) + "\n" for _ in range(lines))
        (folder / f"wikitext-2/wiki.{part}.tokens").write_text(text)
    for part, count in (("train", 300), ("dev", 20)):
        rows = ["sentence\tlabel"]
        for i in range(count):
            words = draw.choices([*WORDS, *(["good"] if i % 2 else ["bad"]) * 15], k=draw.randint(8, 14))
            rows.append(" ".join(words) + f"\t{i % 2}")
        (folder / f"sst2/{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(autouse=True)
def small_and_single_threaded(monkeypatch):
    monkeypatch.setattr(qslm.data.sst2, "SEARCH_SIZE", 40)
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)  # save at every fiftieth step
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class KilledError(Exception):
    pass


class Killer:
    """A Progress that lets a training run up to a step and no further."""

    def __init__(self, step):
        self.step = step

    def track(self, items, total, description):
        for item in items:
            if item == self.step:
                raise KilledError
            yield item

    def message(self, text):
        pass


@pytest.fixture
def killed_at():
    def run(step, train, *arguments):
        with pytest.raises(KilledError):
            train(*arguments, progress=Killer(step))

    return run
