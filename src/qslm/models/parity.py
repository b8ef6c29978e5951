"""Do the parallel and the recurrent form of a network compute one function? Stated so that spikes allow an answer.

A spike is a discontinuity: two correct computations whose potentials differ in the last bit may fire differently, and
drift apart from there. So the recurrent form is run with the parallel form's spikes forced: its potentials h must then
lie on the other side of the threshold only where |h - 1| is below a tolerance, and its outputs must agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qslm.errors import CheckpointError
from qslm.models.neurons import THRESHOLD, SpikeTrace
from qslm.models.spikegpt import SpikeGPT

SPIKE_TOLERANCE = {torch.float32: 1e-5, torch.float64: 0.0}  # of |h - 1| where spikes differ
OUTPUT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of logits


@dataclass(frozen=True)
class Parity:
    """How far two forms of a network are apart."""

    spikes: int  # compared
    flipped: int  # of them different
    margin: float  # largest |h - 1| at a spike that differs, 0 where none does
    outputs: float  # largest difference of the logits


def compare_forms(model: SpikeGPT, ids: Tensor) -> Parity:
    """The distance of the two forms on ids (batch, tokens): of their potentials and of their logits."""
    with torch.inference_mode():
        reference = SpikeTrace()
        expected, _ = model.hidden(ids, None, reference)
        state = model.initial_state(len(ids))
        outputs, steps = [], []
        for t in range(ids.shape[1]):
            trace = SpikeTrace(forced=[spikes[:, t : t + 1] for spikes in reference.spikes])
            x, state = model.hidden(ids[:, t : t + 1], state, trace)
            outputs.append(x)
            steps.append(trace.potentials)
        readout = model.head if model.config.classes is None else model.classifier
        difference = (readout(torch.cat(outputs, 1)) - readout(expected)).abs().max()
        potentials = [torch.cat(neuron, 1) for neuron in zip(*steps, strict=True)]
    flipped, margin = 0, 0.0
    for h, spikes in zip(potentials, reference.spikes, strict=True):
        different = (h >= THRESHOLD) != (spikes > 0)
        flipped += int(different.sum())
        margin = max([margin, *(h[different] - THRESHOLD).abs().tolist()])
    return Parity(sum(s.numel() for s in reference.spikes), flipped, margin, float(difference))


def check_recurrent(model: SpikeGPT, ids: Tensor) -> Parity:
    """`compare_forms`; raises CheckpointError when they are further apart than rounding explains.

    float32: spikes differ only where |h - 1| < 1e-5, logits by at most 1e-4. float64: the spikes are the same, logits
    differ by at most 1e-9.
    """
    parity = compare_forms(model, ids)
    dtype = model.ln_out.weight.dtype
    same_spikes = parity.flipped == 0 or parity.margin < SPIKE_TOLERANCE[dtype]
    if not (same_spikes and parity.outputs <= OUTPUT_TOLERANCE[dtype]):
        raise CheckpointError(
            f"The recurrent form of the network differs from the parallel form: {parity.flipped} of {parity.spikes} "
            f"spikes, up to |h - 1| = {parity.margin:.2e}, logits by {parity.outputs:.2e}. "
            f"Allowed are {SPIKE_TOLERANCE[dtype]:.0e} and {OUTPUT_TOLERANCE[dtype]:.0e}.",
            "Fetch or convert the checkpoint again: its weights may be damaged.",
        )
    return parity
