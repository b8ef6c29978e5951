"""The energy account: operations and a table of energies make pJ, compute and memory apart.

E = sum over operations of N_op E_op  +  sum over what is moved of bytes E_level

Two scenarios. Decoding at batch 1 reads every weight once a token; a prefill reads them once for all its tokens. The
energies are those of the operations and of the memory accesses alone: no control, no clock, no leakage.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil, log2

from qslm.anatomy import OUTPUT, Anatomy
from qslm.energy.operations import Operations, accumulate, mac, plain
from qslm.energy.table import Price, Table
from qslm.energy.terms import MACHINES, RAN, Layer, Terms
from qslm.errors import EnergyError

REGISTERS = "registers"  # whose energy is a part of that of the operations
FREE = Price(0.0)


@dataclass(frozen=True)
class Placement:
    """In which memory of the table each kind of bytes lies (derived).

    Weights are read from DRAM, as a model of some megabytes does not fit into the memories on a chip that the table
    prices; what a token needs fits into the small ones. Sums stay in registers, as those of the integer machines do,
    and cost nothing: all spikes of a token are known, so one output after the other can go through all time steps. On a
    machine that goes through time for all outputs together they lie in a memory.
    """

    weights: str = "DRAM"
    buffer: str = "SRAM 32KB"
    rows: str = "DRAM"
    activations: str = "SRAM 32KB"
    indices: str = "SRAM 32KB"
    state: str = "SRAM 32KB"
    sums: str = REGISTERS


@dataclass(frozen=True)
class Scenario:
    """A pass of the network over some tokens, which reads the weights once.

    window: of how many tokens it is a window, where attention sees others; None: those of the calls that were metered,
    so that a token is decoded at their mean position.
    """

    name: str
    tokens: int
    window: int | None = None


DECODE = Scenario("decode", 1)
PREFILL = Scenario("prefill", 1024, window=1024)
SCENARIOS = (DECODE, PREFILL)


@dataclass(frozen=True)
class Energy:
    """pJ of compute and of memory; `derived` is the part of both whose price was not published."""

    compute: float = 0.0
    memory: float = 0.0
    derived: float = 0.0

    @property
    def total(self) -> float:
        """Compute and memory, pJ."""
        return self.compute + self.memory

    def __add__(self, other: "Energy") -> "Energy":
        return Energy(self.compute + other.compute, self.memory + other.memory, self.derived + other.derived)

    def to_dict(self) -> dict[str, float]:
        """For JSON, the total included."""
        return {f"{name}_pj": pj for name, pj in (*asdict(self).items(), ("total", self.total))}


@dataclass(frozen=True)
class Account:
    """What one pass costs, by layer: its operations and its energy."""

    scenario: Scenario
    machine: str
    placement: Placement
    operations: Mapping[str, Operations] = field(repr=False)
    energies: Mapping[str, Energy]

    @property
    def total(self) -> Energy:
        """Of all layers."""
        return sum(self.energies.values(), Energy())

    @property
    def work(self) -> Operations:
        """The operations of all layers."""
        return sum(self.operations.values(), Operations())

    def bytes(self) -> dict[tuple[str, str], float]:
        """Bytes moved, by what they hold and the memory level."""
        return {(what, getattr(self.placement, what)): count for what, count in self.work.bytes.items()}


def price(operations: Operations, table: Table, placement: Placement) -> Energy:
    """What operations and bytes cost. Raises EnergyError where the table lacks an operation or a memory."""
    compute = memory = derived = 0.0
    for operation, count in operations.counts.items():
        cost = table.operation(operation)
        compute += count * cost.pj
        derived += count * cost.pj * cost.derived
    for what, count in operations.bytes.items():
        level = getattr(placement, what)
        cost = FREE if level == REGISTERS else table.byte(level)
        memory += count * cost.pj
        derived += count * cost.pj * cost.derived
    return Energy(compute, memory, derived)


def make_account(
    layers: Iterable[Layer],
    table: Table,
    scenario: Scenario,
    machine: str = RAN,
    terms: Terms | None = None,
    placement: Placement | None = None,
) -> Account:
    """The account of one pass of a network whose layers were metered; what was counted is scaled to its tokens.

    So candidates of a search differ by `terms` alone; their activity is that of the network that was metered. Raises
    EnergyError where no token was metered, the machine is not one of `terms.MACHINES`, and as `price` does.
    """
    layers, terms, placement = tuple(layers), terms or Terms(), placement or Placement()
    tokens = max((layer.tokens for layer in layers), default=0)
    if not tokens or machine not in MACHINES:
        raise EnergyError(
            f"There is no account of {tokens} tokens on a machine {machine!r}.",
            f"Meter a network that runs, and name one of {', '.join(MACHINES)}.",
        )
    operations = {}
    for layer in layers:
        seen = layer if scenario.window is None else layer.in_windows(scenario.window)
        done = seen.operations(machine, terms)
        once = Operations({}, {"weights": done.bytes.get("weights", 0)})
        moved = {what: count for what, count in done.bytes.items() if what != "weights"}
        operations[layer.path] = Operations(done.counts, moved).times(scenario.tokens / tokens) + once
    energies = {path: price(done, table, placement) for path, done in operations.items()}
    return Account(scenario, machine, placement, operations, energies)


def blocks(anatomy: Anatomy, layers: Iterable[Layer]) -> dict[str, str]:
    """The block of every layer, by path: that of the nearest site at the layer or above it."""
    return {layer.path: _block(anatomy, layer.path) for layer in layers}


def _block(anatomy: Anatomy, path: str) -> str:
    while path:
        for site in anatomy.sites:
            if any(name.startswith(f"{path}.") for name in (site.name, *site.aliases)):
                return site.block
        path = path.rpartition(".")[0]
    return OUTPUT


# ---- when do spikes pay off ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """Firing rates, spikes an input and time step, below which spikes cost less than integers of as many levels.

    steps: T; bits: of the integers, ceil(log2(T + 1)). Of spikes that are counted: registers, where the sums of an
    output stay there over all steps; stepwise, where a step reads and writes the sums of all outputs; eventwise, where
    each spike does. first_spike and first_spike_stepwise: of time to first spike, by double integration, where an input
    has one spike at most. 0 says that spikes never pay off, 1 that they always do.
    """

    steps: int
    bits: int
    registers: float
    stepwise: float
    eventwise: float
    first_spike: float
    first_spike_stepwise: float

    @property
    def most(self) -> float:
        """The highest rate of first spikes, 1 / T, at which every input is other than 0."""
        return 1 / self.steps

    @property
    def nonzero(self) -> float:
        """The share of inputs other than 0 up to which first spikes cost less, sums in registers, 0 to 1."""
        return min(1.0, self.first_spike * self.steps)

    def __str__(self) -> str:
        return (
            f"T = {self.steps} against int{self.bits}: spikes that are counted cost less below a firing rate of "
            f"{self.registers:.1%} with their sums in registers, {self.stepwise:.1%} with sums that each step moves, "
            f"{self.eventwise:.1%} with sums that each spike moves; time to first spike below {self.first_spike:.1%}, "
            f"or {self.first_spike_stepwise:.1%} with sums that each step moves, of {self.most:.1%} that are possible "
            f"at all: while at most {self.nonzero:.0%} of the inputs are other than 0"
        )


def bound(
    table: Table, steps: int, *, width: int = 1024, weight_bits: int = 4, placement: Placement | None = None
) -> Bound:
    """Where spikes break even with a dense integer matrix (width, width), from the same table.

    Weights lie on the chip. The integer machine reads each once and multiplies. A spike reads its column of weights
    and adds it to every output; first spikes add one more sum at each step; every output is compared with its threshold
    at each step. Sums that move lie where the placement has the state. The published bound is about 6 % (Yan et al.,
    arXiv 2409.08290: 6.4 % for T from 5 to 10, 5.7 % for T = 5), from another hardware model than this one; the
    dataflows here are derived. Raises EnergyError unless there is a step, and as `price` does.
    """
    if steps < 1 or width < 1:
        raise EnergyError(f"There is no bound for {steps} steps and {width} inputs.", "Give 1 or more of both.")
    bits, still = ceil(log2(steps + 1)), placement or Placement()
    moving = replace(still, sums=still.state)
    integer = price(_integers(width, weight_bits, bits), table, still).total

    def rate(where: Placement, sums: int = 1, *, eventwise: bool = False) -> float:
        """The energy of spikes is linear in their rate: solve it for that of the integers."""
        rest, full = (
            price(_spikes(width, weight_bits, steps, spikes, sums, eventwise), table, where).total
            for spikes in (0, steps * width)
        )
        if full <= rest:
            return float(rest < integer)
        return min(1.0, max(0.0, (integer - rest) / (full - rest)))

    return Bound(steps, bits, rate(still), rate(moving), rate(moving, eventwise=True), rate(still, 2), rate(moving, 2))


def _integers(width: int, weight_bits: int, bits: int) -> Operations:
    """A dense matrix on one token."""
    matrix = width * width
    return Operations(
        {mac(f"int{weight_bits}", f"int{bits}", "int32"): matrix},
        {"buffer": matrix * weight_bits / 8, "activations": 2 * width * bits / 8},
    )


def _spikes(width: int, weight_bits: int, steps: int, spikes: int, sums: int, eventwise: bool) -> Operations:
    """So many spikes of all inputs over all steps; sums: running sums of a neuron, 2 for double integration."""
    arrivals = spikes * width
    touched = arrivals if eventwise else steps * width * sums
    return Operations(
        {
            accumulate(f"int{weight_bits}", "int32"): arrivals,
            plain("add", "int32"): steps * width * (sums - 1),
            plain("compare", "int32"): steps * width,
        },
        {"buffer": arrivals * weight_bits / 8, "activations": 2 * steps * width / 8, "sums": 8 * touched},
    )
