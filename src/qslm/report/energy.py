"""What energy.json says of a study, as the values that a report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qslm.energy import DECODE, FLOATING, INTEGER, RAN, SCENARIOS

MICRO = 1e6  # pJ in a uJ
SHOWN = (RAN, INTEGER, FLOATING)  # machines of which the page tells
MOST = 1e30  # pJ, so that no sum is infinite


@dataclass(frozen=True)
class Spent:
    """pJ of computing, and of reading and writing memory, for a token."""

    compute: float
    memory: float

    @property
    def total(self) -> float:
        """Both, pJ."""
        return self.compute + self.memory


@dataclass(frozen=True)
class Pass:
    """A pass over so many tokens: what one of them takes, by machine, in the order of the blocks."""

    name: str
    tokens: int
    spent: Mapping[str, tuple[Spent, ...]]


@dataclass(frozen=True)
class Account:
    """The account of a study: what decoding a token takes of each point (None where it ended early), and each block.

    tokens: that were metered, of the split `split`; table, source: of the energies; not_counted: modules, by path.
    """

    tokens: int
    split: str
    table: str
    source: str
    weights_in: str
    activations: str
    not_counted: tuple[str, ...]
    decoding: tuple[Spent | None, ...]
    blocks: tuple[str, ...]
    passes: tuple[Pass, ...]


def make_account(content: Mapping[str, Any], keys: Sequence[str | None], blocks: Sequence[str]) -> Account:
    """The account that energy.json holds.

    `keys` are those of the points, None of one that ended early; `blocks` those of the network, in order. Raises
    KeyError, TypeError or ValueError where something is missing or is no energy.
    """
    candidates, layers = content["candidates"], content["layers"]
    block_of = {str(path): str(measured["block"]) for path, measured in layers.items()}
    present = [block for block in blocks if block in set(block_of.values())]
    if unknown := set(block_of.values()) - set(present):
        raise ValueError(f"{sorted(unknown)[0]!r:.40} is no block of the network")
    accounts = {(one["scenario"], one["machine"]): one for one in content["accounts"]}
    return Account(
        _tokens(content["tokens"]),
        str(content["split"]),
        str(content["table"]),
        str(content["source"]),
        str(content["weights_in"]),
        str(content["activations"]),
        tuple(map(str, content["not_counted"])),
        tuple(None if key is None else _spent(candidates[key][DECODE.name]) for key in keys),
        tuple(present),
        tuple(
            Pass(
                scenario.name,
                scenario.tokens,
                {name: _by_block(accounts[scenario.name, name], block_of, present) for name in SHOWN},
            )
            for scenario in SCENARIOS
        ),
    )


def _by_block(account: Mapping[str, Any], block_of: Mapping[str, str], blocks: Sequence[str]) -> tuple[Spent, ...]:
    """The sums of the layers of each block, for one of the account's tokens."""
    tokens, layers = _tokens(account["scenario_tokens"]), account["layers"]
    found = dict.fromkeys(blocks, Spent(0.0, 0.0))
    for path, block in block_of.items():
        one, before = _spent(layers[path]), found[block]
        found[block] = Spent(before.compute + one.compute / tokens, before.memory + one.memory / tokens)
    return tuple(found.values())


def _spent(content: Mapping[str, Any]) -> Spent:
    return Spent(_picojoules(content["compute_pj"]), _picojoules(content["memory_pj"]))


def _picojoules(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MOST:
        raise ValueError(f"{value!r:.40} is no energy")
    return float(value)


def _tokens(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r:.40} tokens")
    return value
