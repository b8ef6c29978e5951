import json
import os
import signal
import subprocess
import sys
from pathlib import Path

FILES = [
    "artifact/config.json",
    "artifact/model.safetensors",
    "energy.json",
    "ledger.sqlite",
    "selection.json",
    "study.json",
]


def test_a_study_killed_at_random_moments_ends_the_same(tmp_path):
    script = Path(__file__).with_name("killed.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    deaths = [line for line in lines if "at" in line]
    changed = [line for line in lines if "changed" in line]
    assert len(changed) == 8
    assert all(death["died_of"] == signal.SIGKILL and death["agrees"] and death["same"] for death in changed), changed
    assert len(deaths) == 20
    assert {death["died_of"] for death in deaths} == {signal.SIGKILL}
    assert sum(death["again"] == signal.SIGKILL for death in deaths) > 5
    assert all(death["same"] for death in deaths)
    assert all(death["left"] == FILES for death in deaths), deaths
    kept = [death["kept"] for death in sorted(deaths, key=lambda death: death["at"])]
    assert kept == sorted(kept) and kept[0] < kept[-1]
