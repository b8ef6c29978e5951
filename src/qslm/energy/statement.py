"""Accounts as JSON values: what `qslm energy` says, and what a study keeps for its report."""

from collections.abc import Iterable
from typing import Any

from qslm.anatomy import Anatomy
from qslm.energy.account import SCENARIOS, Account, Placement, blocks, make_account
from qslm.energy.matrix import Matrix
from qslm.energy.metering import Meter
from qslm.energy.rounded import Rounded
from qslm.energy.table import Table
from qslm.energy.terms import MACHINES, RAN, Layer, Terms


def statement(meter: Meter, anatomy: Anatomy, table: Table, terms: Terms, placement: Placement) -> dict[str, Any]:
    """The accounts of both scenarios on all machines, what was measured of each layer, and what stands behind them.

    `anatomy` says the block of a layer. Raises EnergyError as `make_account` does.
    """
    skipped, accumulated = work_shares(meter.layers)
    return {
        "tokens": meter.tokens,
        "table": table.name,
        "source": table.source,
        "weights_in": placement.weights,
        "activations": terms.activations,
        "accounts": [
            _account(make_account(meter.layers, table, scenario, machine, terms, placement))
            for scenario in SCENARIOS
            for machine in MACHINES
        ],
        "layers": _measured(meter.layers, anatomy),
        "zero_share": skipped,
        "spike_share": accumulated,
        "not_counted": list(meter.unseen),
    }


def per_token(layers: Iterable[Layer], table: Table, terms: Terms, placement: Placement) -> dict[str, dict[str, float]]:
    """By scenario, the pJ of a token as the network ran: how the candidates of a study compare.

    Raises EnergyError as `make_account` does.
    """
    layers = tuple(layers)
    accounts = [make_account(layers, table, scenario, RAN, terms, placement) for scenario in SCENARIOS]
    return {
        one.scenario.name: {part: pj / one.scenario.tokens for part, pj in one.total.to_dict().items()}
        for one in accounts
    }


def work_shares(layers: Iterable[Layer]) -> tuple[float, float]:
    """Of the multiply-accumulates that dense matrices would do: the share that meets a zero, and the share that spikes
    turn into accumulates; 0 to 1 each.
    """
    dense = zeros = spikes = 0
    for layer in layers:
        if isinstance(layer, Matrix | Rounded):
            fired = layer.spikes if isinstance(layer, Matrix) else (layer.kind == "spikes") * layer.live
            dense += layer.inputs * layer.out
            zeros += layer.zeros * layer.out
            spikes += fired * layer.out
    return (zeros / dense, spikes / dense) if dense else (0.0, 0.0)


def _account(account: Account) -> dict[str, Any]:
    """One account: its energy, its operations and bytes by kind, and the energy of every layer by path."""
    return {
        "scenario": account.scenario.name,
        "scenario_tokens": account.scenario.tokens,
        "machine": account.machine,
        **account.total.to_dict(),
        "operations": {str(one): count for one, count in sorted(account.work.counts.items())},
        "bytes": [{"what": what, "memory": level, "bytes": count} for (what, level), count in account.bytes().items()],
        "layers": {path: energy.to_dict() for path, energy in account.energies.items()},
    }


def _measured(layers: Iterable[Layer], anatomy: Anatomy) -> dict[str, dict[str, Any]]:
    """The block of every layer, and what was measured of it: its firing rate, the share of inputs that were 0."""
    layers = tuple(layers)
    block = blocks(anatomy, layers)
    return {
        layer.path: {
            "block": block[layer.path],
            "firing_rate": getattr(layer, "rate", None),
            "zero_inputs": layer.zeros / layer.inputs if isinstance(layer, Matrix | Rounded) else None,
        }
        for layer in layers
    }
