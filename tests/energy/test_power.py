"""Power with a powercap tree, a clock and a GPU that are made up."""

import sys
from types import SimpleNamespace

import pytest

from qslm.energy import find_counters, measure
from qslm.energy.power import PowercapZone
from qslm.errors import EnergyError

RANGE = 1_000_000  # microjoules of a round


class Machine:
    """Time that only passes by sleeping and working, and zones that count what it uses: so many watts each."""

    def __init__(self, root, zones):
        self.root, self.now, self.zones = root, 0.0, {}
        for folder, (name, start) in zones.items():
            (root / folder).mkdir(parents=True)
            (root / folder / "name").write_text(name + "\n")
            (root / folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
            self.zones[folder] = start
        self.spend(0, 0)

    def spend(self, seconds, watts):
        self.now += seconds
        for folder in self.zones:
            self.zones[folder] = (self.zones[folder] + round(seconds * watts * 1e6)) % (RANGE + 1)
            (self.root / folder / "energy_uj").write_text(f"{self.zones[folder]}\n")

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.spend(seconds, watts=0.25)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture
def machine(tmp_path, no_gpu):
    return Machine(tmp_path, {"intel-rapl:0": ("package-0", RANGE - 3)})


def worked(machine, repeats=3, watts=0.75):
    def work():
        machine.spend(0.5, watts)
        return 100

    return measure(
        work, find_counters(machine.root), repeats=repeats, seconds=1.0, clock=machine.clock, sleep=machine.sleep
    )


def test_idle_is_subtracted(machine):
    found = worked(machine)
    assert found.idle_watts == pytest.approx(0.25)
    assert found.joules_per_token == pytest.approx(0.5 / 200)  # half a watt more for the second of 200 tokens
    assert found.low == pytest.approx(found.high) and len(found.repeats) == 3
    assert found.counters == ("intel-rapl:0 (package-0)",)


def test_the_interval_is_that_of_the_repeats(machine):
    watts = iter([0.5, 0.5, 0.75, 0.75, 1.0, 1.0])

    def work():
        machine.spend(0.5, next(watts))
        return 100

    found = measure(work, find_counters(machine.root), repeats=3, seconds=1.0, clock=machine.clock, sleep=machine.sleep)
    assert found.repeats == pytest.approx((0.25 / 200, 0.5 / 200, 0.75 / 200))
    # mean 2.5 mJ, s 1.25 mJ, t(2) at 97.5 % = 4.3027
    assert found.high - found.joules_per_token == pytest.approx(4.30265 * 0.00125 / 3**0.5, rel=1e-5)
    assert found.low < 0


def test_a_counter_that_starts_again_is_followed(machine):
    zone = PowercapZone(machine.root / "intel-rapl:0")
    machine.spend(1, 0.5)
    assert machine.zones["intel-rapl:0"] < RANGE - 3
    assert zone.joules() == pytest.approx(0.5)
    assert zone.joules() == 0


def test_parts_of_a_package_are_not_counted_twice(tmp_path, no_gpu):
    zones = {
        "intel-rapl:0": ("package-0", 0), "intel-rapl:0:0": ("core", 0), "intel-rapl:0:1": ("dram", 0),
        "intel-rapl:1": ("psys", 0), "intel-rapl-mmio:0": ("package-0", 0),
    }  # fmt: skip
    machine = Machine(tmp_path, zones)
    counters = find_counters(tmp_path)
    assert [one.name for one in counters.found] == ["intel-rapl:0 (package-0)", "intel-rapl:0:1 (dram)"]
    machine.spend(1, 0.25)
    assert counters.joules() == pytest.approx(0.5)


def test_where_nothing_can_be_read_it_is_said_and_nothing_invented(tmp_path, no_gpu):
    counters = find_counters(tmp_path)
    assert counters.found == ()
    assert str(tmp_path / "intel-rapl:0") in counters.missing[0] and "nvidia-ml-py" in counters.missing[1]
    with pytest.raises(EnergyError, match="No power was measured"):
        measure(lambda: 1, counters)


@pytest.mark.parametrize("content", ["", "-5", "1e3", "٣", "x" * 100, "9" * 30, "\x00"])
def test_a_file_that_holds_no_number_is_named(machine, content):
    (machine.root / "intel-rapl:0" / "energy_uj").write_text(content)
    counters = find_counters(machine.root)
    assert counters.found == () and "energy_uj" in counters.missing[0]


def test_a_file_that_cannot_be_read_is_named(machine):
    path = machine.root / "intel-rapl:0" / "energy_uj"
    path.unlink()
    path.mkdir()  # unreadable even for root
    assert str(path) in find_counters(machine.root).missing[0]


@pytest.mark.parametrize(("repeats", "seconds"), [(2, 1.0), (3, 0.0), (3, float("nan"))])
def test_too_few_repeats_are_refused(machine, repeats, seconds):
    with pytest.raises(EnergyError, match="show no interval"):
        measure(lambda: 1, find_counters(machine.root), repeats=repeats, seconds=seconds)


def test_work_without_tokens_is_refused(machine):
    counters = find_counters(machine.root)
    with pytest.raises(EnergyError, match="no token"):
        measure(lambda: 0, counters, seconds=1.0, clock=machine.clock, sleep=machine.sleep)


def test_a_gpu_is_counted_by_its_millijoules(tmp_path, monkeypatch):
    state = {"millijoules": 5_000}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: state["millijoules"],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counters = find_counters(tmp_path)
    assert [one.name for one in counters.found] == ["GPU 0"]
    state["millijoules"] += 1_500
    assert counters.joules() == 1.5


def test_a_driver_that_is_not_there_is_said(tmp_path, monkeypatch):
    def init():
        raise RuntimeError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=init))
    assert find_counters(tmp_path).missing[1] == "NVML: Driver Not Loaded."
