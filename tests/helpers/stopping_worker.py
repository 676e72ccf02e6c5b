"""Two processes that stop before their end, as tests/test_launch.py asks: `wait` for a signal, or one makes a mistake."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from shared.app.entry import run_command
from shared.app.errors import UserError


def main(argv: Sequence[str]) -> None:
    accelerator = Accelerator(cpu=True)
    if argv[0] == "wait":
        if accelerator.is_main_process:
            print("waiting", flush=True)
        time.sleep(300)
    if not accelerator.is_main_process:
        raise UserError("a mistake that the second process alone makes")
    accelerator.gather(torch.ones(1))


if __name__ == "__main__":
    run_command(main)
