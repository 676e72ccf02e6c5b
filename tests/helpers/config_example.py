"""A config with a field of every kind, in a module that imports a library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from shared.app.config import require_range

Kind = Literal["a", "b"]
LARGEST = 2**6
net = torch.nn.Identity


def with_net(value: float) -> torch.Tensor:
    return torch.tensor(value)


@dataclass(frozen=True)
class Heavy:
    """Its range is a tensor's."""

    side_px: int = 1

    def __post_init__(self) -> None:
        require_range(side_px=(self.side_px, float(with_net(0.0)), LARGEST))


@dataclass(frozen=True)
class Inner:
    """What is inside."""

    side_px: int = 8  # of a square
    on: bool = True

    def __post_init__(self) -> None:
        require_range(side_px=(self.side_px, 2, LARGEST))

    @classmethod
    def of(cls, side_px: int) -> Inner:
        return cls(side_px)


@dataclass(frozen=True)
class Part:
    """One part."""

    name: str  # what it is called


@dataclass(frozen=True)
class Config:
    """Everything."""

    inputs: str  # a picture
    steps: int = 8  # how many
    # above the field,
    # in two lines
    rate: float = 1e-3  # beside it
    kind: Kind = "a"
    inner: Inner = field(default_factory=lambda: Inner.of(16))  # of the example
    widths: tuple[int, ...] = (1, 2)  # one a level
    parts: list[Part] = field(default_factory=lambda: [Part("x")])
    limit: float | None = (
        None  # so long a comment beside the field that the formatter gives it lines of its own, between brackets
    )
    members: dict[str, Part] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_range(steps=(self.steps, 1, 10**6), rate=(self.rate, 0, 1))
        if self.steps % 2:
            raise ValueError(f"steps must be even, got {self.steps}")
