"""Evaluations on a real Ray cluster of several nodes on this machine."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from networks.encoder import SpikingEncoder
from networks.troubled import Troubled
from torch import nn

from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.errors import StudyError, TaskError
from qslm.evaluation.evaluator import Evaluator
from qslm.evaluation.pool import make_pool
from qslm.formats import Format

TESTS = str(Path(__file__).parents[1])
SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
own_warnings = pytest.mark.filterwarnings("default")  # Ray's are not ours


@pytest.fixture(scope="module")
def ray():
    found = pytest.importorskip("ray", reason="Ray is not installed: pip install 'qslm[ray]'")
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def cluster(ray):
    """A head without CPUs, where this process is, and two nodes of one CPU."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", TESTS)  # the nodes import the tests' networks
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
        cluster.last = [cluster.add_node(num_cpus=1, **SMALL) for _ in range(2)][-1]
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def model():
    return SpikingEncoder()


@pytest.fixture(scope="module")
def allocations(model):
    return [Allocation.uniform(find_anatomy(model), Format.parse(text)) for text in ("int2", "int3", "int4")]


@pytest.fixture(scope="module")
def alone(model, allocations):
    """What one process measures."""
    with Evaluator(model, find_anatomy(model), Troubled(model)) as evaluator:
        return [evaluator.measure(allocation, "search").losses.values for allocation in allocations]


@own_warnings
def test_actors_measure_what_one_process_measures(ray, cluster, model, allocations, alone):
    with make_pool(model, find_anatomy(model), Troubled(model), ray=cluster.address, threads=1) as pool:
        assert ray.cluster_resources()["CPU"] == 2
        found = list(pool.measure_many(allocations, "search"))
        part = pool.measure(allocations[0], "search", stop=lambda losses: len(losses.values) >= 30)
        assert len(part.losses.values) == 30 and not part.complete
        whole = pool.measure(allocations[0], "search", known=part)
    assert all(np.array_equal(one.losses.values, values) for one, values in zip(found, alone, strict=True))
    assert np.array_equal(whole.losses.values, alone[0])
    assert not ray.is_initialized()


@own_warnings
def test_accidents_and_errors_on_a_cluster(ray, cluster, model, allocations, alone, tmp_path, listener):
    """A connection that is there is used, and is left as it is."""
    lives = tmp_path / "lives"
    lives.write_text("1")
    anatomy = find_anatomy(model)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        dying = Troubled(model, fatal=5, lives=lives, raising=7, error=TaskError("No.", "Do not."))
        with make_pool(model, anatomy, dying, listener, ray=cluster.address, threads=1) as pool:
            with pytest.raises(TaskError, match="Do not"):
                pool.measure(allocations[0], "search")
            lives.write_text("9")
            with pytest.raises(StudyError, match="3 workers in a row ended at batch 5"):
                pool.measure(allocations[0], "search")
        assert any("is gone" in message for message in listener.messages)
        with pytest.raises(StudyError, match="0 workers measure nothing"):
            make_pool(model, anatomy, dying, ray=cluster.address, workers=0)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def place_of(actor):
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid()


@own_warnings
def test_a_lost_node_loses_nothing_and_a_new_one_joins(ray, cluster, model, allocations, alone, listener):
    task = Troubled(model, slow=0.05)
    with make_pool(model, find_anatomy(model), task, listener, ray=cluster.address, threads=1) as pool:
        pool.measure(allocations[0], "search")
        deadline = time.monotonic() + 150
        while len(pool._queue._idle) < 2:  # until both actors are there
            assert time.monotonic() < deadline
            pool.measure(allocations[0], "search")
        calls = [actor.__ray_call__.remote(place_of) for actor in pool._crew._actors.values()]
        victim = dict(ray.get(calls))[cluster.last.node_id]

        def remove(losses):
            if len(losses.values) == 20:
                cluster.remove_node(cluster.last, allow_graceful=False)
                os.kill(victim, signal.SIGKILL)  # a machine takes all its processes along
            return False

        found = pool.measure(allocations[1], "search", stop=remove)
        assert np.array_equal(found.losses.values, alone[1]) and found.complete
        assert any("is gone" in message for message in listener.messages)
        cluster.last = cluster.add_node(num_cpus=1, **SMALL)
        while len(pool._queue._idle) < 2:
            assert time.monotonic() < deadline, "the new node got no worker"
            pool.measure(allocations[0], "search")
        assert np.array_equal(pool.measure(allocations[2], "search").losses.values, alone[2])


@own_warnings
def test_a_class_without_a_module_travels_too(cluster, model):
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, ids):
            return self.inner(ids)

    wrapped = Wrapped(model)
    floats = Allocation.float32(find_anatomy(wrapped))
    with Evaluator(wrapped, find_anatomy(wrapped), Troubled(model)) as evaluator:
        wanted = evaluator.measure(floats, "search")
    with make_pool(wrapped, find_anatomy(wrapped), Troubled(model), ray=cluster.address, workers=1, threads=1) as pool:
        assert np.array_equal(pool.measure(floats, "search").losses.values, wanted.losses.values)


@own_warnings
def test_a_cluster_that_is_not_there_is_told(ray, model):
    with pytest.raises(StudyError, match=r"no Ray cluster at '127\.0\.0\.1:9'") as caught:
        make_pool(model, find_anatomy(model), Troubled(model), ray="127.0.0.1:9")
    assert "ray start --head" in caught.value.remedy and not ray.is_initialized()


def test_without_ray_the_extra_is_named(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match="Ray is not installed") as caught:
        make_pool(model, find_anatomy(model), Troubled(model), ray="auto")
    assert "pip install 'qslm[ray]'" in caught.value.remedy
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
