"""`qslm spike`: convert a network's linear layers into spiking ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qslm.cli.opening import open_task
from qslm.cli.options import BinaryEmbedding, Checkpoint, Data, File, Json, Threads, Tokenizer, use_threads
from qslm.cli.output import print_json, print_table
from qslm.cli.progress import Listener
from qslm.errors import SpikeError
from qslm.folders import check_ahead, named

if TYPE_CHECKING:
    from qslm.spike import Spiked
    from qslm.tasks.statistics import Comparison

RATIO = "6.25%"
CALIBRATE, SENTENCES = {"wikitext2": 64, "text": 64}, 2048  # windows of a text; sentences

Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="Folder of the packed model.", show_default=False, parser=named, metavar="DIR"),
]
TaskName = Annotated[
    str, typer.Option("--task", help="What it is calibrated and measured on: wikitext2, sst2, text or labelled.")
]
Ratio = Annotated[
    str | None, typer.Option("--ratio", help="Share of salient values of every input.", show_default=RATIO)
]
Threshold = Annotated[
    float | None,
    typer.Option("--threshold", help="Modified z-score above which a value is salient; no --ratio then."),
]
Bits = Annotated[int, typer.Option("--bits", help="Of a normal value, sign included, 2 to 8.")]
SalientBits = Annotated[int, typer.Option("--salient-bits", help="Of a salient value; what is larger is shifted.")]
Clip = Annotated[float, typer.Option("--clip", help="Share of the largest normal value that the bits reach.")]
Weights = Annotated[int, typer.Option("--weights", help="Bits of a weight, 2 to 8; one scale a row.")]
Group = Annotated[
    int | None,
    typer.Option("--group", help="32, 64 or 128 inputs whose weights are shifted by a power of two of their own."),
]
Quantizer = Annotated[str, typer.Option("--quantizer", help="How weights are rounded: gptq, clip, minmax, hqq.")]
Rotate = Annotated[bool, typer.Option("--rotate", help="Fold Hadamard rotations into a Llama first.")]
Static = Annotated[
    bool,
    typer.Option("--static", help="Calibrate once what is salient, for all tokens, in place of medians of each."),
]
FloatWeights = Annotated[
    bool,
    typer.Option(
        "--float-weights", help="Pack the weights in float32, for qslm search --activations to choose all bits."
    ),
]
KvBits = Annotated[
    int | None,
    typer.Option("--kv-bits", help="Of the KV cache of a Llama, 2 to 8: values fire, keys are rounded."),
]
NextStep = Annotated[
    str, typer.Option("--next-step", help="Of cached values: static, by calibration; dynamic, of every token.")
]
Calibrate = Annotated[
    int | None,
    typer.Option("--calibrate", min=1, help="Windows of training text, or sentences.", show_default="64, or 2,048"),
]
Windows = Annotated[int, typer.Option("--windows", min=2, help="Windows of the search split to measure.")]


def spike(
    checkpoint: Checkpoint,
    output: Output,
    task: TaskName = "wikitext2",
    ratio: Ratio = None,
    threshold: Threshold = None,
    bits: Bits = 4,
    salient_bits: SalientBits = 8,
    clip: Clip = 0.9,
    weights: Weights = 4,
    group: Group = None,
    quantizer: Quantizer = "gptq",
    rotate: Rotate = False,
    static: Static = False,
    float_weights: FloatWeights = False,
    kv_bits: KvBits = None,
    next_step: NextStep = "static",
    calibrate: Calibrate = None,
    windows: Windows = 16,
    file: File = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    binary_embedding: BinaryEmbedding = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Convert a network so that its linear layers add up integer weights as spikes arrive, and pack it.

    Activations become spike counts on one step size a token: 4 bits a value, more for salient ones. The packed model
    runs in this integer form wherever it is opened. The cost is measured on the search split.

    Examples: [bold]qslm spike spikegpt-mini -o mini-spikes[/bold]

    [bold]qslm spike SmolLM2-135M-Instruct.gguf -o smol-spikes --ratio 5% --rotate[/bold]

    [bold]qslm spike SmolLM2-135M-Instruct.gguf -o smol-spikes --kv-bits 4[/bold]

    [bold]qslm eval mini-spikes --task wikitext2[/bold]

    [bold]qslm spike spikegpt-mini --float-weights -o mini-slots[/bold]
    """
    check_ahead(output, "packing")
    from qslm.spike import SpikeOptions
    from qslm.spike import spike as convert
    from qslm.spiking import Encoding

    use_threads(threads)
    chosen = None if threshold is not None and ratio is None else _parse_share(RATIO if ratio is None else ratio)
    if ratio is not None and threshold is not None:
        raise SpikeError("Both --ratio and --threshold are given.", "A ratio finds the threshold of every input.")
    encoding = Encoding(bits, salient_bits, clip)
    modified_z = 3.5 if threshold is None else threshold
    options = SpikeOptions(
        *(encoding, chosen, modified_z, weights, group, quantizer, rotate, static, float_weights, kv_bits, next_step)
    )
    with Listener() as progress:
        loaded, made = open_task(
            checkpoint,
            task,
            tokenizer=tokenizer,
            binary_embedding=binary_embedding,
            data=data,
            file=file,
            context=None,
            windows={"calibrate": calibrate or CALIBRATE.get(task, SENTENCES), "search": windows},
            progress=progress,
        )
        found = convert(loaded, made, output, options, progress)
    if as_json:
        print_json({"checkpoint": checkpoint, "task": made.name, "output": str(output), **found.to_dict()})
    else:
        _print(output, found)


def _parse_share(text: str) -> float:
    """A share such as 6.25% or 0.0625. Raises SpikeError."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise SpikeError(f"--ratio {text[:64]!r} is no share.", "Give one such as 6.25%.") from None


def _print(output: Path, found: "Spiked") -> None:
    from qslm.conversion.packing import REST
    from qslm.units import format_bytes

    rows = [
        [path, f"{one['salient_ratio']:.2%}", f"{one['zero_ratio']:.1%}", f"{one['activation_bits']:.2f}"]
        for path, one in found.layers.items()
    ]
    print_table(["layer", "salient", "zero", "bits a value"], rows, "What reaches the spiking layers")
    unit = found.spikes.metric
    print_table(
        [unit, "value", "beside float32, 95 %"],
        [
            ["float32", f"{found.float32.value:.3f}", ""],
            ["rounded weights", f"{found.rounded.value:.3f}", _spelled(found, found.weights)],
            ["spikes", f"{found.spikes.value:.3f}", _spelled(found, found.loss)],
        ],
        "Search split",
    )
    print(
        f"On {len(found.spikes.losses.values)} {found.unit}s of the search split the spikes cost "
        f"{_spelled(found, found.step)} beside the rounded weights."
    )
    print(f"Salient: {found.salient_ratio:.2%} of all values; {found.activation_bits:.2f} bits a stored value.")
    print(
        f"Outputs that leave a layer as spike counts: {found.outputs_as_counts:.1%}; the others need a real scale for:"
    )
    for name, share in list(found.outputs.items())[1:]:
        print(f"  {name} {share:.1%}")
    if found.cache is not None:
        print(f"KV cache: {found.cache} bits; values are spike counts, keys are rounded behind RoPE.")
    print(f"Embedding and head stay outside the spiking layers, matrices of them in {REST}.")
    if found.rotation is not None:
        print(f"Rotated: {found.rotation}.")
    print(f"{output}: {format_bytes(found.bytes)}")


def _spelled(found: "Spiked", one: "Comparison") -> str:
    from qslm.budget import spell_loss

    loss, low, high = (spell_loss(found.kind, end) for end in (one.loss, one.low, one.high))
    return f"{loss} ({low} to {high})"
