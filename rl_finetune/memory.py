"""Estimates the memory of an RL run by part, and the largest pass that a card holds; needs no GPU.

python -m rl_finetune.memory configs/gpu/train_rl_sr.yaml architecture=configs/gpu/base_sr.yaml processes=8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from reward_model.network.checkpoint import locate_checkpoint
from rl_finetune.footprint.estimate import RESERVED, Costs, Footprint, Rewards, rewards_of
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.session import open_judge
from rl_finetune.supervised.config import PretrainConfig
from shared.app.config import load_config, require_range
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.policies.interface import DiffusionPolicy
from shared.policies.load import load_policy
from shared.policies.pixel_unet import PixelUNet

CARDS_GB = (24, 80, 141)


@dataclass(frozen=True)
class MemoryConfig(TrainRlConfig):
    """An RL run, and on how many processes; see TrainRlConfig."""

    # A base policy's own config, configs/gpu/base_sr.yaml: its architecture stands in for a base that is not trained yet.
    architecture: str = ""
    processes: int = 1  # over all machines, each with a GPU of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(processes=(self.processes, 1, 1_000_000))


def main(argv: Sequence[str]) -> None:
    config = load_config(MemoryConfig, argv)
    if config.method in ("refl", "draft"):
        raise UserError(
            f"expected method policy_gradient or nft, got {config.method}: what its gradient keeps of decoder and rewards is "
            "not estimated yet"
        )
    policy = policy_of(config)
    costs = Costs.of(config, policy, judging_of(config, policy.scale), device="cuda")
    found = costs.footprint(processes=config.processes)
    print(
        f"RL {config.task}, {config.groups} groups of {config.group_size} on {config.processes} processes, GB on each:"
    )
    for line in table(found):
        print(line)
    for line in cards(costs, config.processes):
        print(line)
    if torch.cuda.is_available():
        require_memory(costs, torch.cuda.mem_get_info()[0], processes=config.processes)


def table(found: Footprint) -> list[str]:
    """Returns a line for each part in GB, and for the peak."""
    always = asdict(found)
    lines = [f"  {name:<10}{value / 1e9:9.3f}" for name, value in always.items()]
    return [*lines, f"  {'peak':<10}{found.peak / 1e9:9.3f}   of the last four, the largest alone"]


def cards(costs: Costs, processes: int) -> list[str]:
    """Returns a line for each card: the largest pass that it holds, and what is then used."""
    lines = []
    for card in CARDS_GB:
        most = costs.largest_pass(card * 1e9, processes=processes)
        if most:
            size = costs.config.group_size
            used = costs.footprint(processes=processes, in_pass=most // size * size or most).peak / 1e9
            says = f"{passes_words(most, size)}, {used:.1f} GB"
        else:
            says = too_little(costs, card * 1e9, processes=processes)
        lines.append(f"  {card:>3} GB: {says}")
    return lines


def passes_words(samples: int, group_size: int) -> str:
    """Returns the settings of a pass of at most `samples`: whole groups where one fits."""
    groups = samples // group_size
    if not groups:
        return f"microbatch_samples={samples}"
    return f"microbatch_groups={groups} ({groups * group_size} samples a pass)"


def too_little(costs: Costs, card_bytes: float, *, processes: int) -> str:
    """Returns, for a card that not even one sample a pass fits on, what is needed and what would need less."""
    needed = costs.footprint(processes=processes, in_pass=1).peak / 1e9 / (1 - RESERVED)
    return (
        f"too little: one sample a pass needs {needed:.1f} GB, and there are {card_bytes / 1e9:.1f}; take trainable=lora, a "
        "smaller group_size or pairs.crop_px, or fewer groups"
    )


def require_memory(costs: Costs, free_bytes: float, *, processes: int) -> None:
    """Raises UserError, with the figures, where the run's passes as they are set do not fit into `free_bytes`."""
    needed = costs.footprint(processes=processes).peak / (1 - RESERVED)
    if needed <= free_bytes:
        return
    most = costs.largest_pass(free_bytes, processes=processes)
    if not most:
        raise UserError(too_little(costs, free_bytes, processes=processes))
    raise UserError(
        f"this run needs about {needed / 1e9:.1f} GB on each GPU, and {free_bytes / 1e9:.1f} are free: set "
        f"{passes_words(most, costs.config.group_size)}, the most that fits (restore-rl memory shows the parts)"
    )


def policy_of(config: MemoryConfig) -> DiffusionPolicy:
    """Returns the run's base policy, or one without weights of the architecture that stands in for it."""
    if not config.architecture:
        return load_policy(config.base)[0]
    with torch.device("meta"):
        return PixelUNet(load_config(PretrainConfig, [config.architecture]).policy)


def judging_of(config: TrainRlConfig, scale: int) -> Rewards:
    """Returns what the run's rewards hold; nothing, and says so, where the reward model is not there yet."""
    if not Path(config.reward_model).is_dir() and config.reward_model.count("/") > 1:
        print(f"the reward model {config.reward_model} is not there: its memory is left out")
        return Rewards()
    locate_checkpoint(config.reward_model, revision=config.reward_revision)
    judge = open_judge(config, torch.device("cpu"))
    return rewards_of(list(judge.composites.values()), crop_px=config.pairs.crop_px, scale=scale)


if __name__ == "__main__":
    run_command(main)
