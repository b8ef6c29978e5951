import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def test_a_study_of_sensitivity_killed_at_random_moments_ends_the_same(tmp_path):
    script = Path(__file__).with_name("killed_sensitivity.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    deaths = sorted(map(json.loads, done.stdout.splitlines()), key=lambda death: death["at"])
    assert len(deaths) == 8 and {death["died_of"] for death in deaths} == {signal.SIGKILL}
    assert all(death["same"] for death in deaths), deaths
    kept = [death["kept"] for death in deaths]
    assert kept == sorted(kept) and kept[0] < kept[-1]
    assert deaths[-1]["calls"] < deaths[0]["calls"]  # what was kept is not done again
