"""Where the outputs of converted layers go: to a cache of spike counts, or to what takes real numbers.

A threshold can hold the scale of an output only where the next operation takes each output as it is, on a step that is
known before. What takes it otherwise is named here, by the names that layers have in the networks that we convert.
"""

from collections.abc import Mapping

COUNTS = "spike counts"
TAKERS = {
    "q_proj": "RoPE",
    "k_proj": "RoPE",
    "v_proj": "the mixture by softmax",
    "o_proj": "residual additions, before a norm",
    "gate_proj": "SiLU or GELU, and its product",
    "up_proj": "SiLU or GELU, and its product",
    "down_proj": "residual additions, before a norm",
    "query": "products of queries and keys",
    "key": "products of queries and keys",
    "value": "the mixture by softmax",
    "q_lin": "products of queries and keys",
    "k_lin": "products of queries and keys",
    "v_lin": "the mixture by softmax",
    "out_lin": "residual additions, before a norm",
    "lin1": "SiLU or GELU, and its product",
    "lin2": "residual additions, before a norm",
    "output.dense": "residual additions, before a norm",
    "intermediate.dense": "SiLU or GELU, and its product",
    "att.key": "exponentials of WKV",
    "att.value": "sums of WKV",
    "att.receptance": "sigmoids, and their products",
    "att.output": "membranes of LIF neurons",
    "ffn.key": "squared ReLU",
    "ffn.receptance": "sigmoids, and their products",
    "ffn.value": "sigmoids, and their products",
}
OTHERS = "operations on numbers"  # in networks whose layers have other names


def taker(path: str) -> str:
    """What takes the outputs of a layer as numbers."""
    *_, parent, name = ("", *path.split("."))
    return TAKERS.get(f"{parent}.{name}") or TAKERS.get(name, OTHERS)


def shares(outputs: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """What takes the outputs of all layers, COUNTS first, by its share of them, 0 to 1.

    outputs: of each layer by path, how many there were, and how many of them were spike counts.
    """
    found = {COUNTS: 0}
    for path, (every, fired) in outputs.items():
        found[COUNTS] += fired
        if every > fired:
            found[taker(path)] = found.get(taker(path), 0) + every - fired
    total = sum(every for every, _ in outputs.values())
    return {name: count / total for name, count in found.items()}
