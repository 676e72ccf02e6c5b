"""Noise schedules x_t = α_t·x_0 + σ_t·ε, and the conversions between what a network predicts and (x_0, ε)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

import torch

from shared.app.config import require_range

Level = TypeVar("Level", float, torch.Tensor)

Prediction = Literal["epsilon", "v", "x0", "flow"]
Betas = Literal["cosine", "linear", "scaled_linear", "rectified_flow"]
Spacing = Literal["trailing", "leading", "linspace"]


@dataclass(frozen=True)
class ScheduleConfig:
    """A noise schedule and what the network predicts on it."""

    betas: Betas = "cosine"  # variance preserving by its betas, or rectified_flow: α = 1 − σ
    train_timesteps: int = 1000  # timesteps run from 0 (nearly clean) to train_timesteps − 1 (noise)
    beta_start: float = 0.00085  # first β of linear and scaled_linear; the default is Stable Diffusion's
    beta_end: float = 0.012  # last β of linear and scaled_linear; the default is Stable Diffusion's
    prediction: Prediction = "v"  # what the network's output is: noise, clean latent, velocity or flow
    # Which timesteps a sampler of few steps visits, as diffusers names it. trailing: from pure noise on, equally spaced;
    # leading: from the clean end on, equally spaced; linspace: both ends.
    timestep_spacing: Spacing = "trailing"
    steps_offset: int = 0  # added to every timestep of spacing leading; Stable Diffusion's is 1
    zero_terminal_snr: bool = False  # the betas are stretched so that the last timestep is noise alone
    # Where the last step leads. true: to the clean image; false: to the level of timestep 0 (set_alpha_to_one of diffusers).
    ends_clean: bool = True
    shift: float = 1.0  # rectified_flow: above 1, more of the timesteps are noisy: σ = shift·u / (1 + (shift − 1)·u)

    def __post_init__(self) -> None:
        require_range(train_timesteps=(self.train_timesteps, 2, 1_000_000))
        require_range(steps_offset=(self.steps_offset, 0, self.train_timesteps - 1), shift=(self.shift, 0.01, 100))
        if self.shift != 1.0 and self.betas != "rectified_flow":
            raise ValueError(f"shift is for betas: rectified_flow, got {self.shift:g} with {self.betas}")
        if self.zero_terminal_snr and (self.betas == "rectified_flow" or self.prediction == "epsilon"):
            raise ValueError(
                "zero_terminal_snr stretches betas, and where there is no signal left noise cannot be predicted: it goes "
                f"with prediction v or x0, got {self.betas} with {self.prediction}"
            )
        if (self.betas == "rectified_flow") != (self.prediction == "flow"):
            raise ValueError(
                f"prediction: flow goes with betas: rectified_flow and with nothing else, got {self.prediction} "
                f"with {self.betas}"
            )


@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of one schedule, float64 on the CPU: index t in [0, train_timesteps) or −1 for the clean image.

    A flow knows every level between as well: there, t may be a float above −1.
    """

    config: ScheduleConfig
    alphas: torch.Tensor  # [T + 1]; the last entry, reached by index −1, is the clean image's 1 (see ends_clean)
    sigmas: torch.Tensor  # [T + 1]; likewise 0
    _tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def build(cls, config: ScheduleConfig) -> NoiseSchedule:
        """Returns the schedule's tables."""
        count = config.train_timesteps
        with torch.device("cpu"):  # also where a network is built without memory, on "meta"
            if config.betas == "rectified_flow":
                sigmas = _shifted(torch.arange(1, count + 1, dtype=torch.float64) / count, config.shift)
                alphas = 1.0 - sigmas
            else:
                alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0)
                if config.zero_terminal_snr:
                    alphas_cumprod = _to_zero_snr(alphas_cumprod)
                alphas, sigmas = alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt()
            clean = torch.tensor([1.0], dtype=torch.float64)
            end = (clean, 1.0 - clean) if config.ends_clean else (alphas[:1], sigmas[:1])
            return cls(config, torch.cat([alphas, end[0]]), torch.cat([sigmas, end[1]]))

    def alpha_sigma(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (α, σ) as float32 [B, 1, 1, 1] on the timesteps' device, for timesteps [B] as `batch_at` makes them."""
        if timesteps.is_floating_point():
            # Apple's GPUs have no float64.
            exact = timesteps.cpu() if timesteps.device.type == "mps" else timesteps
            sigma = self._flow_sigma(exact.double())
            alpha = 1.0 - sigma
        else:
            alphas, sigmas = self._tables_on(timesteps.device)
            alpha, sigma = alphas[timesteps], sigmas[timesteps]
        alpha, sigma = alpha.float().view(-1, 1, 1, 1), sigma.float().view(-1, 1, 1, 1)
        return alpha.to(timesteps.device), sigma.to(timesteps.device)

    def level(self, t: float) -> tuple[float, float]:
        """Returns (α, σ) at one timestep: an index of the table, or for a flow a float between."""
        if isinstance(t, int):
            return self._levels[t]
        sigma = self._flow_sigma(t)
        return 1.0 - sigma, sigma

    def batch_at(self, t: float, count: int, device: torch.device | str) -> torch.Tensor:
        """Returns timestep t for `count` samples, [count]: integers, or float32 where it is a float."""
        return torch.full((count,), t, dtype=torch.long if isinstance(t, int) else torch.float32, device=device)

    def model_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns the times [B] that a network from elsewhere is told at `timesteps`: for a flow σ·train_timesteps."""
        if self.config.betas != "rectified_flow":
            return timesteps
        return self.alpha_sigma(timesteps)[1].flatten() * self.config.train_timesteps

    @cached_property
    def _levels(self) -> list[tuple[float, float]]:
        return list(zip(self.alphas.tolist(), self.sigmas.tolist(), strict=True))

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (alphas, sigmas) as float32 on a device; taken there once, so that no step waits for a copy."""
        if device not in self._tables:
            self._tables[device] = self.alphas.float().to(device), self.sigmas.float().to(device)
        return self._tables[device]

    def _flow_sigma(self, t: Level) -> Level:
        if self.config.betas != "rectified_flow":
            raise ValueError(f"timesteps of a schedule with betas {self.config.betas} are integers, got {t}")
        return _shifted((t + 1.0) / self.config.train_timesteps, self.config.shift)

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

    def sampling_timesteps(self, steps: int) -> list[int] | list[float]:
        """Returns `steps` timesteps from noise to clean and a closing −1, spaced as the schedule says.

        Of a flow, `linspace` gives floats: equally spaced before the shift, as diffusers draws them. A single step begins
        at noise, whatever the spacing.
        """
        count, offset = self.config.train_timesteps, self.config.steps_offset
        if not 1 <= steps <= count:
            raise ValueError(f"steps must lie between 1 and {count}, got {steps}")
        match self.config.timestep_spacing if steps > 1 else "trailing":
            case "trailing":
                times = [round(count - i * count / steps) - 1 for i in range(steps)]
            case "leading":
                times = [i * (count // steps) + offset for i in reversed(range(steps))]
            case "linspace" if self.config.betas == "rectified_flow":
                last = float(self.sigmas[0])  # diffusers shifts the cleanest level twice
                times = [u * count - 1.0 for u in torch.linspace(1.0, last, steps, dtype=torch.float64).tolist()]
            case "linspace":
                times = torch.linspace(0, count - 1, steps, dtype=torch.float64).round().long().tolist()[::-1]
        if times[0] >= count:
            raise ValueError(f"{steps} steps with steps_offset {offset} begin beyond the last timestep, {count - 1}")
        return [*times, -1]


def _shifted(u: Level, shift: float) -> Level:
    """Returns σ of a flow whose levels u in [0, 1] are shifted towards noise (2403.03206, eq. 23)."""
    return u if shift == 1.0 else shift * u / (1.0 + (shift - 1.0) * u)


def _to_zero_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Returns ᾱ with √ᾱ moved and stretched so that it ends at 0 and begins where it did (2305.08891, algorithm 1)."""
    roots = alphas_cumprod.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()


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
