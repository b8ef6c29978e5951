"""Memory and time of a SpikeGPT of the published size: 18 x 768, 50,277 words, 862 MB in float32, random weights.

Each stage runs in a process of its own, and peak resident memory is that of the whole process: Python and PyTorch,
the pages of the mapped checkpoint, and everything computed. The limit is 3 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LIMIT_GB = 3.0
STAGES = ("write", "start", "load", "inspect", "evaluate", "calibrate")
ABOUT = {
    "write": "write the checkpoint",
    "start": "import qslm and PyTorch",
    "load": "load, every value checked, sha256",
    "inspect": "load, find the anatomy",
    "evaluate": "load, perplexity of two windows of 1,024 tokens",
    "calibrate": "load, choose the embedding on 2,048 tokens",
}


def random_weights(layers: int, width: int, vocabulary: int) -> "dict[str, torch.Tensor]":
    """Random weights of a SpikeGPT whose neurons fire, under the published key names."""
    import torch

    from qslm.models.config import SpikeGPTConfig
    from qslm.models.spikegpt import SpikeGPT

    with torch.device("meta"):
        model = SpikeGPT(SpikeGPTConfig(vocabulary, width, layers, 4 * width))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in model.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        state[name] = values.div_(tensor.shape[-1] ** 0.5) if values.ndim == 2 else values.mul_(0.1)
        if ".ln" in name or name.startswith("ln"):
            state[name] += float(name.endswith("weight"))
    return state


def write(path: Path, layers: int, width: int, vocabulary: int) -> None:
    """Write random weights; a matrix exists once in memory."""
    import torch

    torch.save(random_weights(layers, width, vocabulary), path)


def run_stage(stage: str, path: Path, options: argparse.Namespace) -> None:
    """Do one stage in this process and print what it took."""
    start = time.perf_counter()
    found: dict[str, Any] = {}
    if stage == "write":
        write(path, options.layers, options.width, options.vocabulary)
        found["bytes"] = path.stat().st_size
    else:
        found |= read(stage, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"stage": stage, "peak_bytes": peak, "seconds": time.perf_counter() - start, **found}))


def read(stage: str, path: Path) -> dict[str, Any]:
    import qslm.loading.checkpoint
    from qslm.anatomy.find import find_anatomy
    from qslm.data.source import Source
    from qslm.data.tokenizer import train_tokenizer
    from qslm.data.wikitext2 import TextCorpus
    from qslm.evaluation import evaluate
    from qslm.tasks.language_modelling import LanguageModelling

    if stage == "start":
        return {}
    text = "the film is a good film . the plot is bad , the end is worse .\n" * 400
    words = train_tokenizer([text[:200]], 300)
    if stage == "calibrate":
        # A tokenizer beside the file and no config: the case in which the embedding is chosen on text.
        words.save(str(path.with_name("tokenizer.json")))
        corpus = TextCorpus(text, text, text, Source("made-up text", "this benchmark"))
        setattr(qslm.loading.checkpoint, "load_wikitext2", lambda *_: corpus)  # noqa: B010 - it is not of its public names
        model = qslm.loading.checkpoint.load_checkpoint(path).model
        return {"binary_embedding": model.config.to_dict()["binary_embedding"]}
    model = qslm.loading.checkpoint.load_model(path)
    if stage == "inspect":
        anatomy = find_anatomy(model)
        return {"sites": len(anatomy.sites), "blocks": len(anatomy.blocks), "float32_bytes": anatomy.float32_bytes}
    if stage == "evaluate":
        vocabulary = model.config.vocabulary_size
        task = LanguageModelling("text", {"report": text}, words, context=1024, windows=2, vocabulary_size=vocabulary)
        return {"perplexity": evaluate(model, task).value}
    return {"parameters": sum(p.numel() for p in model.parameters())}


def measure(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    sizes = [f"--{name}={getattr(options, name)}" for name in ("layers", "width", "vocabulary")]
    rows = []
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--folder", str(path.parent), *sizes]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if not options.json:
            row = rows[-1]
            print(f"{ABOUT[stage]:48} {row['peak_bytes'] / 1e9:6.2f} GB {row['seconds']:7.1f} s", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50277)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written; a temporary folder without")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--stage", choices=STAGES, help="do this one in this process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / "spikegpt-random.pth"
        if options.stage:
            run_stage(options.stage, path, options)
            return 0
        rows = measure(path, options)
    largest = max(row["peak_bytes"] for row in rows[1:]) / 1e9  # the first one writes
    kept = largest <= LIMIT_GB
    if options.json:
        print(json.dumps({"stages": rows, "largest_gb": largest, "limit_gb": LIMIT_GB, "kept": kept}))
    else:
        print(f"largest peak of what reads it: {largest:.2f} GB of {LIMIT_GB} GB: {'kept' if kept else 'BROKEN'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
