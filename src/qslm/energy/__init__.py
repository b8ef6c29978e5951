"""Operations counted in the running network, what they cost by published energies, and power where it is measured."""

from qslm.energy.account import (
    DECODE,
    PREFILL,
    REGISTERS,
    SCENARIOS,
    Account,
    Bound,
    Energy,
    Placement,
    Scenario,
    blocks,
    bound,
    make_account,
    price,
)
from qslm.energy.layers import FLOATING, INTEGER, MACHINES, RAN, SPARSE, Layer, Terms, firing, work_shares
from qslm.energy.metering import Meter, metered
from qslm.energy.operations import Operation, Operations
from qslm.energy.power import Counters, Power, find_counters, measure
from qslm.energy.table import Price, Table, load_table, parse_table

__all__ = [
    "DECODE",
    "FLOATING",
    "INTEGER",
    "MACHINES",
    "PREFILL",
    "RAN",
    "REGISTERS",
    "SCENARIOS",
    "SPARSE",
    "Account",
    "Bound",
    "Counters",
    "Energy",
    "Layer",
    "Meter",
    "Operation",
    "Operations",
    "Placement",
    "Power",
    "Price",
    "Scenario",
    "Table",
    "Terms",
    "blocks",
    "bound",
    "find_counters",
    "firing",
    "load_table",
    "make_account",
    "measure",
    "metered",
    "parse_table",
    "price",
    "work_shares",
]
