"""Kills every stage at random moments, most of them inside writes, resumes it, and compares its bytes with a run never killed.

python -m tests.kills folder=/tmp/kills kills=200 seed=0          # prints a table; exit code 1 where a byte is wrong
python -m tests.kills folder=/tmp/kills full=60 small=30 stages=train-rl,dataset
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from rl_finetune.cli import spread
from tests.helpers.killed_stages import (
    STAGES,
    fill_and_resume,
    kill_and_resume,
    prepare,
    reference,
    shrink_and_resume,
)

# Killed; a write that says the disk is full; a real disk that becomes small (needs to be root).
WAYS = {"kills": kill_and_resume, "full": fill_and_resume, "small": shrink_and_resume}


def main(words: list[str]) -> int:
    asked = dict(word.split("=", 1) for word in spread(words))
    here = Path(asked.get("folder", "/tmp/kills")).absolute()
    seed, stages = int(asked.get("seed", 0)), asked.get("stages", ",".join(STAGES)).split(",")
    until = time.monotonic() + float(asked.get("seconds", 1e9))
    if not (here / "whole").exists():
        prepare(here)
    wanted, wrong = {kind: int(asked.get(kind, 0)) for kind in WAYS}, 0
    for stage in stages:
        whole, usual = reference(stage, here, here / "never_killed" / stage)
        again, _ = reference(stage, here, here / "never_killed_again" / stage)
        unsteady = [name for name in whole.keys() | again.keys() if whole.get(name) != again.get(name)]
        print(
            f"{stage}: {usual.events} changes to the disk, {usual.seconds:.1f} s; not the same twice: {unsteady or 'none'}"
        )
        for kind, way in WAYS.items():
            rng, done, trials = random.Random(f"{seed} {stage} {kind}"), 0, 0
            while done < wanted[kind] / len(stages) and time.monotonic() < until:
                trial = way(stage, here, here / "attacked" / stage, whole, usual, rng)
                done, trials, wrong = done + len(trial.kills), trials + 1, wrong + bool(trial.wrong)
                for said in trial.wrong:
                    print(f"  WRONG after {trial.kills}: {said}", flush=True)
            if trials:
                print(f"  {stage}, {kind}: {done} in {trials} runs", flush=True)
    print(f"{wrong} runs wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
