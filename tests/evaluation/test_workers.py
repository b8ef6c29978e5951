import io
import multiprocessing.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from networks.encoder import SpikingEncoder
from networks.spikegpt import random_spikegpt
from networks.tasks import Agreement, NextToken
from networks.tied import TiedNetwork
from networks.troubled import Troubled
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import FormatError, StudyError, TaskError
from qslm.evaluation.evaluator import Evaluator
from qslm.evaluation.parcel import read_parcel, write_parcel
from qslm.evaluation.pool import make_pool
from qslm.evaluation.workers import refuse_other_surroundings, surroundings
from qslm.formats import Format
from qslm.tasks.task import as_task

FORMATS = ("int2", "int3", "int4", "int8")


@pytest.fixture(scope="module")
def model():
    return SpikingEncoder()


@pytest.fixture(scope="module")
def allocations(model):
    return [Allocation.uniform(find_anatomy(model), Format.parse(text)) for text in FORMATS]


@pytest.fixture(scope="module")
def task(model):
    return Agreement(model, batch=10)


@pytest.fixture(scope="module")
def alone(model, allocations, task):
    """What one process measures."""
    with Evaluator(model, find_anatomy(model), task) as evaluator:
        return [evaluator.measure(allocation, "search") for allocation in allocations]


@pytest.fixture(scope="module")
def pool(model, task):
    with make_pool(model, find_anatomy(model), task, workers=2) as pool:
        yield pool


def same(found, wanted):
    """Whether two evaluations are one to the bit, but for the time and the work that they took."""
    parts = [(one.losses.values, one.losses.weights) for one in (found, wanted)]
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(*parts, strict=True))
    assert (found.losses.units is None) == (wanted.losses.units is None)
    assert found.losses.units is None or np.array_equal(found.losses.units, wanted.losses.units)
    figures = [
        (one.metric, one.value, one.low, one.high, one.losses.tokens, one.footprint_file, one.details, one.complete)
        for one in (found, wanted)
    ]
    assert figures[0] == figures[1]
    return True


def test_workers_measure_what_one_process_measures(pool, allocations, alone):
    for allocation, wanted in zip(allocations, alone, strict=True):
        assert same(pool.measure(allocation, "search"), wanted)
    assert len({evaluation.value for evaluation in alone}) > 1


def test_independent_candidates_come_in_their_order(pool, allocations, alone):
    found = list(pool.measure_many(iter(allocations), "search"))
    assert all(same(*pair) for pair in zip(found, alone, strict=True))


def test_candidates_that_nobody_waits_for_are_forgotten(pool, allocations, alone):
    several = pool.measure_many(allocations, "search")
    assert same(next(several), alone[0])
    several.close()
    assert same(pool.measure(allocations[3], "search"), alone[3])


@pytest.mark.parametrize("batches", [1, 4, 11])
def test_a_stop_and_what_follows_are_those_of_one_process(pool, model, task, allocations, alone, batches):
    def stop(losses):
        return len(losses.values) >= 10 * batches

    with Evaluator(model, find_anatomy(model), task) as evaluator:
        wanted = evaluator.measure(allocations[1], "search", stop=stop)
    found = pool.measure(allocations[1], "search", stop=stop)
    assert same(found, wanted) and not found.complete and len(found.losses.values) == 10 * batches
    finished = pool.measure(allocations[1], "search", known=found)
    assert finished.complete and np.array_equal(finished.losses.values, alone[1].losses.values)
    assert pool.measure(allocations[1], "search", known=finished) is finished


def test_the_network_is_left_alone(pool, model, allocations):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pool.measure(allocations[0], "search")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_tensors_and_other_threads():
    model = TiedNetwork()
    anatomy, task = find_anatomy(model), NextToken(model)
    allocation = Allocation.uniform(anatomy, Format.parse("int3"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with Evaluator(model, anatomy, task) as evaluator:
            wanted = evaluator.measure(allocation, "search")
        with make_pool(model, anatomy, task, workers=1) as pool:
            assert same(pool.measure(allocation, "search"), wanted)
    finally:
        torch.set_num_threads(before)


def processes(pool):
    return [process for process, _ in pool._crew._workers.values()]


def test_a_killed_worker_is_replaced_and_nothing_is_lost(model, allocations, alone, listener):
    with make_pool(model, find_anatomy(model), Troubled(model, slow=0.05), listener, workers=2) as pool:
        pool.measure(allocations[0], "search")
        first, second = processes(pool)
        asked = 0

        def kill(losses):
            nonlocal asked
            asked += 1
            if asked == 2:
                os.kill(first.pid, signal.SIGKILL)
            if asked == 3:
                os.kill(second.pid, signal.SIGKILL)
            return False

        assert same(pool.measure(allocations[1], "search", stop=kill), alone[1])
        assert sum("ended with status -9" in message for message in listener.messages) == 2


def test_a_batch_that_kills_one_worker_goes_to_another(model, allocations, alone, tmp_path):
    lives = tmp_path / "lives"
    lives.write_text("2")
    task = Troubled(model, fatal=5, lives=lives)
    with make_pool(model, find_anatomy(model), task, workers=2) as pool:
        assert same(pool.measure(allocations[1], "search"), alone[1])
        lives.write_text("9")
        with pytest.raises(StudyError, match="3 workers in a row ended at batch 5"):
            pool.measure(allocations[1], "search")


@pytest.mark.parametrize("error", [TaskError("No.", "Do not."), ZeroDivisionError("by zero")])
def test_what_a_worker_raises_is_raised(model, allocations, error):
    with make_pool(model, find_anatomy(model), Troubled(model, raising=3, error=error), workers=2) as pool:
        with pytest.raises(type(error)) as caught:
            pool.measure(allocations[0], "search")
        assert str(caught.value) == str(error)
        assert pool.measure(allocations[0], "report").complete


def test_weights_that_cannot_be_rounded_are_named():
    model = SpikingEncoder()
    task = Agreement(model)
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    anatomy = find_anatomy(model)
    allocation = Allocation.uniform(anatomy, Format.parse("int4"))
    with make_pool(model, anatomy, task, workers=1) as pool, pytest.raises(FormatError, match=r"classifier\.weight"):
        pool.measure(allocation, "search")


def test_a_worker_that_is_killed_at_once_is_replaced(model, allocations, monkeypatch):
    """However much there is to be sent: nobody reads it any more, and a pipe that is full waits for ever."""
    task = Agreement(model, batch=10)
    task.words = "x" * (1 << 22)
    real, killed = multiprocessing.util.spawnv_passfds, []

    def spawn(path, words, descriptors):
        pid = real(path, words, descriptors)
        if not killed and "--multiprocessing-fork" in words:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        return pid

    monkeypatch.setattr("multiprocessing.util.spawnv_passfds", spawn)
    with make_pool(model, find_anatomy(model), task, workers=2) as pool:
        assert pool.measure(allocations[0], "search").complete
    assert killed


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from networks.encoder import SpikingEncoder
from networks.troubled import Troubled
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.evaluation.pool import make_pool

if __name__ == "__main__":
    model = SpikingEncoder()
    anatomy = find_anatomy(model)
    with make_pool(model, anatomy, Troubled(model, slow=0.2), workers=2) as pool:
        pool.measure(Allocation.float32(anatomy), "search")
        print(*(process.pid for process, _ in pool._crew._workers.values()), flush=True)
        while True:
            pool.measure(Allocation.float32(anatomy), "search")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which signals are held back")
def test_no_worker_gets_an_interrupt(tmp_path):
    """Not the first either, with which multiprocessing starts a helper that lets interrupts through again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1])))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as started:
        try:
            statuses = [Path(f"/proc/{pid}/status").read_text() for pid in started.stdout.readline().split()]
        finally:
            started.kill()
    held = [int(dict(line.split(":\t") for line in text.splitlines())["SigBlk"], 16) for text in statuses]
    assert len(held) == 2 and all(signals >> (signal.SIGINT - 1) & 1 for signals in held)


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, death):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1])))
    started = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )
    (tmp_path / "temporary").mkdir()
    pids = [int(text) for text in started.stdout.readline().split()]
    assert len(pids) == 2
    if death == signal.SIGINT:
        os.killpg(started.pid, death)  # as a terminal does: the workers get it too
    else:
        os.kill(started.pid, death)
    _, told = started.communicate(timeout=120)
    assert started.returncode == -death
    assert told.count("Traceback") == (death == signal.SIGINT)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_closing_leaves_no_process_and_no_descriptor(model, task, allocations):
    with make_pool(model, find_anatomy(model), task, workers=1) as pool:  # multiprocessing starts its own helper
        pool.measure(allocations[0], "search")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with make_pool(model, find_anatomy(model), task, workers=2) as pool:
        pool.measure(allocations[0], "search")
        pids = [process.pid for process in processes(pool)]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_cannot_be_sent_is_told_before_anything_starts(model, task):
    class Local(nn.Linear):
        pass

    local = Local(2, 2)
    with pytest.raises(StudyError, match=r"cannot be sent to other processes.*Local"):
        make_pool(local, find_anatomy(local), task, workers=2)
    with pytest.raises(StudyError, match="0 workers measure nothing"):
        make_pool(model, find_anatomy(model), task, workers=0)
    with pytest.raises(StudyError, match="on meta, and workers compute on the CPU"):
        make_pool(nn.Linear(2, 2, device="meta"), find_anatomy(model), task, workers=1)


def test_too_many_threads_are_told(model, task, listener):
    many = 4 * (os.cpu_count() or 1)
    make_pool(model, find_anatomy(model), task, listener, workers=1, threads=many).close()
    assert any(f"1 workers of {many} threads" in message for message in listener.messages)


def test_other_machines_are_refused():
    ours = surroundings()
    refuse_other_surroundings(dict(ours), ours)
    with pytest.raises(StudyError, match=r"its torch is 1\.0, here it is"):
        refuse_other_surroundings({**ours, "torch": "1.0"}, ours)


def parcel(content):
    stream = io.BytesIO()
    pickled = write_parcel(content, stream)
    return pickled, bytearray(stream.getvalue())


def test_a_parcel_keeps_values_types_ties_and_views(listener):
    model = random_spikegpt()
    model.register_buffer("transposed", model.head.weight.detach().T)
    odd = [torch.tensor([True, False]), torch.arange(7)[2:5], torch.zeros(0, 3), torch.ones(3, dtype=torch.bfloat16)]
    pickled, buffer = parcel((model, odd, listener))
    copy, others, silent = read_parcel(pickled, buffer)
    assert copy.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        found = copy.state_dict()[name]
        assert torch.equal(found, value) and (found.dtype, found.stride()) == (value.dtype, value.stride())
    assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(others, odd, strict=True))
    with torch.no_grad():
        copy.head.weight[1, 0] = 99.0
    assert copy.transposed[0, 1] == 99.0 and model.head.weight[1, 0] != 99.0
    assert read_parcel(pickled, buffer)[0].head.weight[1, 0] == 99.0  # the buffer is the memory
    silent.message("is not shown")
    assert listener.messages == []


def test_a_parcel_keeps_one_tensor_one():
    model = TiedNetwork()
    pickled, buffer = parcel(model)
    copy = read_parcel(pickled, buffer)
    assert copy.head.weight is copy.emb.weight and isinstance(copy.emb.weight, nn.Parameter)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size <= len(buffer) < size + 64 * len(list(model.parameters())) + 128


class Plain:
    """A task that only has the two methods."""

    def batches(self, split):
        return [torch.arange(3)]

    def losses(self, model, batch):
        raise NotImplementedError


def test_an_adapted_task_travels():
    task = as_task(Plain())
    pickled, buffer = parcel(task)
    assert read_parcel(pickled, buffer).name == "Plain"
