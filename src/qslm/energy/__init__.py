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
from qslm.energy.calls import measure_call, meter_calls, task_calls
from qslm.energy.metering import Meter, metered
from qslm.energy.operations import Operation, Operations
from qslm.energy.power import Counters, Power, find_counters, measure
from qslm.energy.rounded import firing
from qslm.energy.statement import per_token, statement, work_shares
from qslm.energy.table import Price, Table, load_table, parse_table
from qslm.energy.terms import FLOATING, INTEGER, MACHINES, RAN, SPARSE, SPELLED, Layer, Terms

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
    "SPELLED",
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
    "measure_call",
    "meter_calls",
    "metered",
    "parse_table",
    "per_token",
    "price",
    "statement",
    "task_calls",
    "work_shares",
]
