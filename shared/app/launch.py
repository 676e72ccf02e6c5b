"""Starts a module in several processes on this machine, like torchrun, but without its report for a person's mistake.

python -m shared.app.launch 2 rl_finetune.train configs/train_rl_face.yaml key=value …
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from shared.app.entry import run_command
from shared.app.errors import UserError

MISTAKES = (2, 130)  # exit codes of run_command: the process has already said in one line what is wrong


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2 or not argv[0].isdigit() or int(argv[0]) < 1:
        raise UserError(f"expected <processes> <module> key=value …, got {' '.join(argv) or 'nothing'}")
    processes, module, *words = argv
    options = ["--standalone", "--nproc_per_node", processes, "-m", module, *words]
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").disabled = True  # repeats the report
    try:
        run(get_args_parser().parse_args(options))
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if codes & set(MISTAKES):
            sys.exit(min(codes & set(MISTAKES)))
        raise


if __name__ == "__main__":
    run_command(main, own_help=True)
