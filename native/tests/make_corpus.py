"""Write the corpus of fuzz_file.c: small networks of every kind in several formats, with numbers and with spikes.

python native/tests/make_corpus.py
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.conversion.cache import calibrate_cache
from qslm.conversion.convert import convert
from qslm.conversion.packing import SPIKES, round_rest
from qslm.formats import FLOAT16, Format
from qslm.models.causal import CausalLogits
from qslm.models.spikegpt import SpikeGPT
from qslm.quantizers import RoundedSites
from qslm.spiking import Encoding
from qslm.spiking.cache import STATIC
from qslm.spiking.layer import SpikeActivations

HERE = Path(__file__).parent / "corpus" / "file"
sys.path.insert(0, str(HERE.parents[3] / "tests"))

from networks.llama import tiny  # noqa: E402
from networks.spikegpt import random_spikegpt  # noqa: E402
from networks.tasks import NextToken  # noqa: E402

FORMATS = ["int3-row", "int4-sym-g32-p2", "int5-g32-s8", "int8-tensor-s32", "float16"]


def keep(name: str, write: Callable[[Path], object]) -> None:
    """Two bytes with the length of the model file, the model file, config.json."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        file, config = ((Path(folder) / part).read_bytes() for part in ("model.safetensors", "config.json"))
    (HERE / f"{name}.bin").write_bytes(len(file).to_bytes(2, "little") + file + config)


def rounded(model: SpikeGPT | CausalLogits, text: str) -> Callable[[Path], object]:
    """A network whose matrices have a format."""
    allocation = Allocation.uniform(find_anatomy(model), Format.parse(text), vectors=FLOAT16)
    sites = RoundedSites(model.state_dict(), allocation)
    return lambda folder: artifact.write(folder, sites, allocation, config=model.config.to_dict())


def spiking(model: SpikeGPT | CausalLogits, *, cache: bool = False) -> Callable[[Path], object]:
    """A network whose layers read spike counts."""
    anatomy, config, task = find_anatomy(model), model.config.to_dict(), NextToken(model, windows=4, vocabulary=8)
    form = lambda _: SpikeActivations(Encoding(bits=4, clip=1.0), 3.5)  # noqa: E731
    found = convert(model, anatomy, task, {SPIKES: form}, weights=Format.parse("int4-sym-row"), tokens=40)
    packable = round_rest(found, anatomy, config)
    found.use(SPIKES)
    if cache:
        packable = packable.with_cache(calibrate_cache(model, task, 4, STATIC))
    return packable.write


def main() -> None:
    """All of them."""
    for i, text in enumerate(FORMATS):
        model = random_spikegpt(vocabulary=5, width=8, layers=1, ffn_width=33, classes=2 if i == 1 else None)
        keep(text, rounded(model, text))
    keep("spikegpt-spikes", spiking(random_spikegpt(vocabulary=8, width=8, layers=1, ffn_width=33)))
    keep("llama", rounded(CausalLogits(tiny("llama", vocabulary=8)), "int4-g32"))
    keep("qwen2-tied", rounded(CausalLogits(tiny("qwen2", tied=True, vocabulary=8)), "int8-row"))
    keep("llama-spikes", spiking(CausalLogits(tiny("llama", vocabulary=8))))
    keep("qwen2-cache", spiking(CausalLogits(tiny("qwen2", vocabulary=8)), cache=True))


if __name__ == "__main__":
    main()
