"""Every command under one name: restore-rl <command> …, the same as python -m <its module> …

restore-rl --help               lists the commands
restore-rl <command> --help     lists a command's fields with type, range, default and meaning
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.outline import Absent
from shared.app.usage import Command, print_help, summary_of
from shared.pictures.inputs import named_paths
from shared.runs import finished

# By name, in the order a person meets them: importing a module takes seconds, and help and refusals must not wait.
COMMANDS = {
    "base-policies": "rl_finetune.pretrain",
    "train-pool": "data.train_pool",
    "pool-sheet": "data.pool_sheet",
    "dataset": "data.build",
    "browse": "data.browse",
    "train-rm": "reward_model.train",
    "eval-rm": "reward_model.evaluate",
    "download-rm": "reward_model.download",
    "score": "reward_model.score",
    "train-rl": "rl_finetune.train",
    "evaluate": "rl_finetune.evaluate",
    "download-policy": "rl_finetune.download",
    "restore": "rl_finetune.restore",
    "demo": "rl_finetune.demo",
    "convert": "rl_finetune.convert",
    "ship": "rl_finetune.ship",
    "push": "rl_finetune.push",
    "report": "rl_finetune.report",
    "reproduce": "rl_finetune.reproduce",
    "study": "rl_finetune.study",
    "memory": "rl_finetune.memory",
    "bench-dataset": "data.bench",
    "bench-rm": "reward_model.bench",
    "bench-rl": "rl_finetune.bench",
}
LAUNCH = "launch"  # restore-rl launch 2 train-rl …: a command in several processes
HELP = {"--help", "-h"}
# A string of words, quoted as a shell would read them and run by none: how the Makefile hands over ARGS.
WORDS = "--words"


def main(argv: Sequence[str]) -> None:
    words = spread(argv)
    if not words or words[0] in HELP:
        print(commands_help())
        return
    processes = 1
    if words[0] == LAUNCH:
        processes, words = processes_of(words), words[2:]
    name, *words = words
    module = module_of(name)
    if HELP & set(words):
        print_help(module, words, called=f"restore-rl {name}")
        return
    if finished.main(words) == 0:
        return
    refuse_mistakes(module, words)
    if processes > 1:
        from shared.app.launch import main as launch  # imports torch

        launch([str(processes), module, *words])
        return
    import_module(module).main(words)


def commands_help() -> str:
    """Returns every command with what it does, in a line each."""
    lines = [f"  {name:<16}{summary_of(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            "restore-rl <command> …: photographs → distortion dataset → reward model → RL-tuned restorers",
            "",
            *lines,
            f"  {LAUNCH:<16}Runs a command in several processes: restore-rl {LAUNCH} <processes> <command> …",
            "",
            "restore-rl <command> --help lists a command's fields.",
        ]
    )


def spread(argv: Sequence[str]) -> list[str]:
    """Returns the words with every `--words "a b"` in its parts. Raises UserError for a quote that is not closed."""
    words, rest = [], iter(argv)
    for word in rest:
        if word != WORDS:
            words.append(word)
            continue
        text = next(rest, "")
        try:
            words += shlex.split(text)
        except ValueError as error:
            raise UserError(f"expected words with closed quotes, got {text}: {error}") from None
    return words


def module_of(name: str) -> str:
    """Returns the module behind a command. Raises UserError, with the nearest name, where there is none."""
    if name in COMMANDS:
        return COMMANDS[name]
    nearest = get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
    meant = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise UserError(f"no command {name}; {meant}restore-rl --help lists them")


def processes_of(words: Sequence[str]) -> int:
    """Returns the number in `launch <processes> <command> …`. Raises UserError for words of another form."""
    if len(words) < 3 or not words[1].isdigit() or int(words[1]) < 1:
        raise UserError(f"expected {LAUNCH} <processes> <command> key=value …, got {' '.join(words)}")
    return int(words[1])


def refuse_mistakes(module: str, words: Sequence[str]) -> None:
    """Raises UserError for words that the command would refuse, before the seconds that its imports take."""
    try:
        settings = Command.of(module).check(words)
    except Absent:
        return  # the command finds out itself
    if isinstance(inputs := getattr(settings, "inputs", None), str):
        named_paths(inputs)


def run() -> None:
    """The console script."""
    run_command(main, own_help=True)


if __name__ == "__main__":
    run()
