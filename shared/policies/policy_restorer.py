"""A diffusion policy with its sampler, as a restorer: the whole way from lq to sr."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shared.diffusion.sampler import SamplerSpec, sample
from shared.policies.interface import DiffusionPolicy
from shared.vision.images import pad_to_multiple


class PolicyRestorer:
    """A diffusion policy with the sampler it was trained for, as a Restorer."""

    def __init__(self, policy: DiffusionPolicy, spec: SamplerSpec) -> None:
        self.policy = policy.eval()
        self.spec = spec
        self.scale = policy.scale

    @torch.no_grad()
    def restore(self, lq: torch.Tensor, *, sample_seeds: Sequence[int]) -> torch.Tensor:
        """Returns sr [B, 3, scale·h, scale·w] in [0, 1]; any side lengths."""
        height, width = lq.shape[-2] * self.scale, lq.shape[-1] * self.scale
        padded = pad_to_multiple(lq, self.policy.multiple)
        condition = self.policy.condition(padded)
        x0 = sample(
            lambda x_t, t: self.policy.predict(x_t, t, condition),
            self.policy.schedule,
            self.spec,
            sample_seeds=sample_seeds,
            latent_shape=self.policy.latent_shape(padded),
            device=lq.device,
        )
        return self.policy.decode(x0, condition)[..., :height, :width].clamp(0, 1)
