"""Latent policies of a folder, and what they draw, for tests that set them beside diffusers' own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from shared.diffusion.sampler import SamplerSpec, sample
from shared.policies.interface import DiffusionPolicy, Origin
from shared.policies.load import open_stage

SEEDS, STEPS = (3, 4), 4
Kind = TypeVar("Kind", bound=DiffusionPolicy)


def opened(kind: type[Kind], where: Path | str, saved: Path | None = None, **settings) -> Kind:
    """Returns the policy of a diffusers folder, with what was saved of it where that is given."""
    return kind.load(Origin(settings, str(where)), saved, open_stage=partial(open_stage, folder=Path("nowhere")))


@torch.no_grad()
def drawn(policy: DiffusionPolicy, lq: torch.Tensor, eta: float = 0.0, seeds: Sequence[int] = SEEDS) -> torch.Tensor:
    """Returns the latents x_0 after STEPS steps, each picture's noise from its own seed."""
    condition = policy.condition(lq)
    return sample(
        lambda x_t, t: policy(x_t, t, condition),
        policy.schedule,
        SamplerSpec(steps=STEPS, eta=eta),
        sample_seeds=seeds,
        latent_shape=policy.latent_shape(lq),
    )


@torch.no_grad()
def restored(policy: DiffusionPolicy, lq: torch.Tensor, eta: float = 0.0, seeds: Sequence[int] = SEEDS) -> torch.Tensor:
    """Returns the pictures of what is `drawn`, not clamped."""
    return policy.decode(drawn(policy, lq, eta, seeds), policy.condition(lq))
