"""Noise schedules x_t = α_t·x_0 + σ_t·ε, and the conversions between what a network predicts and (x_0, ε)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from shared.app.config import require_range

Prediction = Literal["epsilon", "v", "x0", "flow"]
Betas = Literal["cosine", "linear", "scaled_linear", "rectified_flow"]


@dataclass(frozen=True)
class ScheduleConfig:
    """A noise schedule and what the network predicts on it."""

    betas: Betas = "cosine"  # variance preserving by its betas, or rectified_flow: α = 1 − σ
    train_timesteps: int = 1000  # timesteps run from 0 (nearly clean) to train_timesteps − 1 (noise)
    beta_start: float = 0.00085  # first β of linear and scaled_linear; the default is Stable Diffusion's
    beta_end: float = 0.012  # last β of linear and scaled_linear; the default is Stable Diffusion's
    prediction: Prediction = "v"  # what the network's output is: noise, clean latent, velocity or flow

    def __post_init__(self) -> None:
        require_range(train_timesteps=(self.train_timesteps, 2, 1_000_000))
        if (self.betas == "rectified_flow") != (self.prediction == "flow"):
            raise ValueError(
                f"prediction: flow goes with betas: rectified_flow and with nothing else, got {self.prediction} "
                f"with {self.betas}"
            )


@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of one schedule, float64 on the CPU: index t in [0, train_timesteps) or −1 for the clean image."""

    config: ScheduleConfig
    alphas: torch.Tensor  # [T + 1]; the last entry, reached by index −1, is the clean image's 1
    sigmas: torch.Tensor  # [T + 1]; likewise 0

    @classmethod
    def build(cls, config: ScheduleConfig) -> NoiseSchedule:
        """Returns the schedule's tables."""
        count = config.train_timesteps
        with torch.device("cpu"):  # also where a network is built without memory, on "meta"
            if config.betas == "rectified_flow":
                sigmas = torch.arange(1, count + 1, dtype=torch.float64) / count
                alphas = 1.0 - sigmas
            else:
                alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0)
                alphas, sigmas = alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt()
            clean = torch.tensor([1.0], dtype=torch.float64)
            return cls(config, torch.cat([alphas, clean]), torch.cat([sigmas, 1.0 - clean]))

    def alpha_sigma(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (α, σ) as float32 [B, 1, 1, 1] on the timesteps' device, for integer timesteps [B]."""
        index = timesteps.cpu()
        alpha, sigma = self.alphas[index].float(), self.sigmas[index].float()
        return alpha.view(-1, 1, 1, 1).to(timesteps.device), sigma.view(-1, 1, 1, 1).to(timesteps.device)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns x_t [B, C, h, w] = α_t·x_0 + σ_t·ε in closed form, never by adding noise to noise."""
        alpha, sigma = self.alpha_sigma(timesteps)
        return alpha * x0 + sigma * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns what the network should output for (x_0, ε) at `timesteps`."""
        alpha, sigma = self.alpha_sigma(timesteps)
        match self.config.prediction:
            case "epsilon":
                return noise
            case "v":
                return alpha * noise - sigma * x0
            case "x0":
                return x0
            case "flow":
                return noise - x0

    def to_x0_and_noise(
        self, output: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (x0_pred, noise_pred), float32 [B, C, h, w], from a network output at x_t; inverts `target`."""
        output, x_t = output.float(), x_t.float()
        alpha, sigma = self.alpha_sigma(timesteps)
        match self.config.prediction:
            case "epsilon":
                return (x_t - sigma * output) / alpha, output
            case "v":
                return alpha * x_t - sigma * output, sigma * x_t + alpha * output
            case "x0":
                return output, (x_t - alpha * output) / sigma
            case "flow":
                return x_t - sigma * output, x_t + alpha * output

    def sampling_timesteps(self, steps: int) -> list[int]:
        """Returns `steps` timesteps from noise to clean and a closing −1; trailing spacing starts at pure noise."""
        count = self.config.train_timesteps
        if not 1 <= steps <= count:
            raise ValueError(f"steps must lie between 1 and {count}, got {steps}")
        return [round(count - i * count / steps) - 1 for i in range(steps)] + [-1]


def _betas(config: ScheduleConfig) -> torch.Tensor:
    count = config.train_timesteps
    if config.betas == "linear":
        return torch.linspace(config.beta_start, config.beta_end, count, dtype=torch.float64)
    if config.betas == "scaled_linear":
        return torch.linspace(config.beta_start**0.5, config.beta_end**0.5, count, dtype=torch.float64) ** 2
    # Nichol & Dhariwal 2021, eq. 17: ᾱ(u) = cos²((u + .008) / 1.008 · π/2), β = 1 − ᾱ(u + 1/T) / ᾱ(u), at most .999
    u = torch.arange(count + 1, dtype=torch.float64) / count
    alpha_bar = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
