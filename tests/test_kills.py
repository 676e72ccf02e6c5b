"""A few kills and full disks of every stage that is quick; `make kills` tries hundreds over all stages."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.places import ROOT


def test_killed_and_filled_stages_end_as_if_nothing_had_happened(tmp_path):
    stages = "stages=train-pool,dataset,train-rl,score"  # the others have the same loop, or the same writes
    command = [sys.executable, "-W", "ignore", "-m", "tests.kills", f"folder={tmp_path}", "kills=12", "full=4", stages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "0 runs wrong" in done.stdout
    assert "not the same twice: none" in done.stdout
