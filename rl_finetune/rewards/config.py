"""Which rewards RL maximises, and which maps credit in space is taken from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from rl_finetune.rewards.registry import ToolSettings

Order = Literal["sum_first", "normalise_first"]
# What older runs' settings call a reward. A map kept that name.
RENAMED = {"fgr_map": "fgr_worst_spot"}


@dataclass(frozen=True)
class RewardPart:
    """One named reward and its share."""

    name: str  # of a reward, or of a map; an unknown one is answered with the nearest
    weight: float  # above 0


@dataclass(frozen=True)
class RewardConfig:
    """The composite reward: what RL maximises."""

    # What is maximised, part by part.
    parts: list[RewardPart] = field(
        default_factory=lambda: [RewardPart("fgr_score", 0.5), RewardPart("fgr_worst_spot", 0.5)]
    )
    # normalise_first: each part gets unit spread before it is weighed; sum_first: the raw weighted sum.
    order: Order = "normalise_first"
    networks: Literal["embedded", "hub"] = "embedded"  # embedded: substitutes for rewards whose weights need the Hub
    # The degradation maps that credit in space is taken from, each normalised before it is weighed.
    maps: list[RewardPart] = field(default_factory=lambda: [RewardPart("fgr_map", 1.0)])
    tools: ToolSettings = field(default_factory=ToolSettings)

    def __post_init__(self) -> None:
        parts = [replace(part, name=RENAMED.get(part.name, part.name)) for part in self.parts]
        object.__setattr__(self, "parts", parts)
        if not self.parts:
            raise ValueError("reward.parts must name at least one reward")
        for key, parts in (("parts", self.parts), ("maps", self.maps)):
            names = [part.name for part in parts]
            if len(set(names)) < len(names):
                raise ValueError(f"reward.{key} names a reward twice: {', '.join(names)}")
            if any(not part.weight > 0 for part in parts):
                raise ValueError(f"the weights of reward.{key} must be above 0: leave a part out to do without it")
