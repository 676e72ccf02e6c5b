"""Which steps of an iteration add noise and are trained: the sampler's own window, or a few that move through it.

A few stochastic steps among deterministic ones cost a few updates instead of all of them (MixGRPO). The window is one
for all groups of an iteration; the sampler that is saved, evaluated and used stays the declared one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from shared.app.config import require_range
from shared.diffusion.sampler import SamplerSpec
from shared.seeds import numpy_rng

WindowKind = Literal["declared", "last", "random", "sliding"]


@dataclass(frozen=True)
class WindowConfig:
    """The trained steps of an iteration."""

    # The steps trained. declared: all that the sampler declares stochastic; last, random, sliding: `steps` of those.
    kind: WindowKind = "declared"
    steps: int = 2  # steps in a window of kind last, random or sliding
    every: int = 1  # iterations for which a window of kind random or sliding stays where it is

    def __post_init__(self) -> None:
        require_range(steps=(self.steps, 1, 1000), every=(self.every, 1, 1_000_000))


def stochastic_range(spec: SamplerSpec) -> range:
    """Returns the steps that a sampler declares stochastic; the very last one never is (its noise is 0)."""
    end = spec.steps if spec.window < 0 else spec.window_start + spec.window
    return range(spec.window_start, max(spec.window_start, min(end, spec.steps - 1)) if spec.eta > 0 else 0)


def sampler_of_iteration(spec: SamplerSpec, config: WindowConfig, *, iteration: int, seed: int) -> SamplerSpec:
    """Returns the sampler an iteration trains with: `spec`, stochastic in this iteration's window alone.

    `last` is the cleanest steps; `random` begins anywhere, by (seed, iteration); `sliding` goes from noise to clean, one
    step at a time, and begins again. Windows lie within the steps that `spec` declares stochastic.
    """
    declared = stochastic_range(spec)
    if config.kind == "declared":
        return spec
    places = len(declared) - config.steps + 1  # where a window can begin
    turn = iteration // config.every
    offset = {
        "last": places - 1,
        "random": int(numpy_rng(seed, "window", turn).integers(places)),
        "sliding": turn % places,
    }[config.kind]
    return replace(spec, window_start=declared.start + offset, window=config.steps)
