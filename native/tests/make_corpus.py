"""Write the corpus of fuzz_file.c: small SpikeGPTs in several formats.   python native/tests/make_corpus.py"""

import json
import sys
import tempfile
from pathlib import Path

from qslm import artifact
from qslm.allocation import Allocation
from qslm.anatomy.find import find_anatomy
from qslm.formats import FLOAT16, Format
from qslm.quantizers import RoundedSites

HERE = Path(__file__).parent / "corpus" / "file"
sys.path.insert(0, str(HERE.parents[3] / "tests"))

from networks.spikegpt import random_spikegpt  # noqa: E402

FORMATS = ["int3-row", "int4-sym-g32-p2", "int5-g32-s8", "int8-tensor-s32", "float16"]


def main() -> None:
    """Two bytes with the length of the model file, the model file, config.json."""
    for i, text in enumerate(FORMATS):
        model = random_spikegpt(vocabulary=5, width=8, layers=1, ffn_width=33, classes=2 if i == 1 else None)
        allocation = Allocation.uniform(find_anatomy(model), Format.parse(text), vectors=FLOAT16)
        with tempfile.TemporaryDirectory() as folder:
            artifact.write(folder, RoundedSites(model.state_dict(), allocation), allocation, config={})
            file = (Path(folder) / "model.safetensors").read_bytes()
        config = json.dumps(model.config.to_dict()).encode()
        (HERE / f"{text}.bin").write_bytes(len(file).to_bytes(2, "little") + file + config)


if __name__ == "__main__":
    main()
