"""Rewards by name: functions of (sr, gt, lq), each declaring its range and the tools it needs.

    @reward("psnr", value_range=(0, 100))
    def psnr(sr, gt, lq): ...                                 # [B], higher is better

    @reward("fgr_score", value_range=(-inf, inf), needs=("reward_model",))
    def fgr_score(sr, gt, lq, *, reward_model): ...

A tool is an expensive resource (a network, weights from the Hub), loaded on first use. A module that registers rewards
must be imported by `rl_finetune.rewards.composite`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from shared.app.config import require_range
from shared.app.errors import UserError

RewardFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (sr, gt, lq) → [B] or a map
PYIQA = "pyiqa:"  # rewards named pyiqa:musiq and so on come from that package, when it is installed

_REWARDS: dict[str, Reward] = {}
_MAPS: dict[str, Reward] = {}
_TOOLS: dict[str, Callable[[ToolSettings, torch.device], Any]] = {}


@dataclass(frozen=True)
class Reward:
    """One named reward, or one named per-pixel degradation map."""

    name: str
    value_range: tuple[float, float]  # what the function can return; a map's is (0, 1)
    needs: tuple[str, ...]  # tools, handed over as keyword arguments
    substitute: str | None  # the reward that stands in for it where nothing may be downloaded
    needs_map: bool  # whether it reads the reward model's map, which stage 0 does not have
    function: Callable[..., torch.Tensor]


@dataclass(frozen=True)
class ToolSettings:
    """Which networks the rewards use, and a reward's own number; the reward part of a run's config."""

    perceptual_weights: str = ""  # a folder of features-only weights for LPIPS; empty: torchvision's own file
    lpips_net: str = "vgg"  # vgg, alex, squeeze
    feature_encoder: str = "tu-tf_efficientnet_lite0"  # of encoder_features: a name of smp's, or tu-<timm model>
    feature_weights: str = ""  # its weights, a safetensors file; empty: fetched, where that is allowed
    clipiqa_model: str = "openai/clip-vit-base-patch16"  # a CLIP on the Hub, or a folder
    face_preference_model: str = "adams-story/HPSv2-hf"  # a CLIP ViT-H tuned on human preferences
    face_preference_prompt: str = "a high quality photo of a face"  # what the preference model is asked about
    # λ of `detail`, 0 to 4: what wrong energy costs beside wrong detail. Below ½ grain never pays for missing energy.
    detail_energy_weight: float = 0.25
    identity_model: str = ""  # hf_hub:… (a timm face recogniser, 112 px) or a file with MobileFaceNet's weights
    allow_download: bool = False  # fetch missing weights from the Hub

    def __post_init__(self) -> None:
        require_range(detail_energy_weight=(self.detail_energy_weight, 0, 4))


@dataclass
class Toolbox:
    """The tools of one process, each loaded once. `given` holds what the caller already has: the reward model."""

    settings: ToolSettings = field(default_factory=ToolSettings)
    device: torch.device | str = "cpu"
    given: Mapping[str, Any] = field(default_factory=dict)
    _loaded: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """Returns a tool. Raises UserError when it is not given and cannot be loaded."""
        if name in self.given:
            return self.given[name]
        if name not in self._loaded:
            kind = PYIQA if name.startswith(PYIQA) else name
            if kind not in _TOOLS:
                raise UserError(f"a reward needs {name}, and none was given; name its checkpoint in the config")
            loaded = _TOOLS[kind](self.settings, torch.device(self.device))
            self._loaded[name] = loaded(name) if kind == PYIQA else loaded
        return self._loaded[name]

    def tools(self) -> list[Any]:
        """Returns everything that is given or has been loaded."""
        return [*self.given.values(), *self._loaded.values()]

    def giving(self, **tools: Any) -> Toolbox:
        """Returns a toolbox with other given tools (another stage of the reward model) and the same loaded ones."""
        return replace(self, given={**self.given, **tools})


def reward(
    name: str,
    *,
    value_range: tuple[float, float],
    needs: tuple[str, ...] = (),
    substitute: str | None = None,
    needs_map: bool = False,
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Returns a decorator that registers a function of (sr, gt, lq, **needs) → [B] under `name`."""
    return _register(_REWARDS, name, value_range, needs, substitute, needs_map)


def reward_map(
    name: str, *, needs: tuple[str, ...] = (), needs_map: bool = False
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Returns a decorator that registers a function of (sr, gt, lq, **needs) → [B, 1, H, W], 0 clean, 1 worst."""
    return _register(_MAPS, name, (0.0, 1.0), needs, None, needs_map)


def tool(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that registers a loader (settings, device) → tool."""

    def decorate(loader: Callable[..., Any]) -> Callable[..., Any]:
        _TOOLS[name] = loader
        return loader

    return decorate


def find_reward(name: str) -> Reward:
    """Returns a reward. Raises UserError for an unknown name, with the nearest known one."""
    if name.startswith(PYIQA):
        return replace(_REWARDS[PYIQA], name=name, needs=(name,))
    return _find(_REWARDS, name, "reward")


def find_map(name: str) -> Reward:
    """Returns a per-pixel reward. Raises UserError for an unknown name, with the nearest known one."""
    return _find(_MAPS, name, "degradation map")


def reward_names() -> list[str]:
    """Returns every registered reward's name; pyiqa's are not listed."""
    return sorted(name for name in _REWARDS if name != PYIQA)


def bind(entry: Reward, toolbox: Toolbox) -> RewardFunction:
    """Returns the reward as a function of (sr, gt, lq), its tools in place."""
    if entry.name.startswith(PYIQA):
        return partial(entry.function, metric=toolbox.get(entry.name))
    return partial(entry.function, **{need: toolbox.get(need) for need in entry.needs})


def _register(
    registry: dict[str, Reward],
    name: str,
    value_range: tuple[float, float],
    needs: tuple[str, ...],
    substitute: str | None,
    needs_map: bool,
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    def decorate(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        if name in registry:
            raise ValueError(f"two rewards are called {name!r}")
        registry[name] = Reward(name, value_range, needs, substitute, needs_map, function)
        return function

    return decorate


def _find(registry: Mapping[str, Reward], name: str, what: str) -> Reward:
    if name in registry:
        return registry[name]
    known = sorted(n for n in registry if n != PYIQA)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"there is no {what} called {name!r}; {hint}known are {', '.join(known)}")
