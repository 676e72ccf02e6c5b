"""What every reward is made of, so that no metric judges a reward it shares a network or a formula with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rl_finetune.rewards.registry import PYIQA, ToolSettings

# Of rewards and of degradation maps; `shared.vision.metrics` says the same of metrics.
_MADE_OF: Mapping[str, frozenset[str]] = {
    "psnr": frozenset({"pixel error"}),
    "absolute_error": frozenset({"pixel error"}),
    "ssim": frozenset({"ssim"}),
    "gradient_similarity": frozenset({"gradient_distance"}),
    "gradient_distance": frozenset({"gradient_distance"}),
    "detail": frozenset({"high band"}),
    "detail_error": frozenset({"high band"}),
}
_BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet"}
_OF_PYIQA = {
    "ms_ssim": "ssim",
    "lpips": "alexnet",
    "lpips+": "alexnet",
    "lpips-vgg": "vgg16",
    "dists": "vgg16",
    "psnr": "pixel error",
}


def reward_parts(
    names: Sequence[str], settings: ToolSettings, *, identity_weights: str = ""
) -> dict[str, frozenset[str]]:
    """Returns each reward's networks and formulas as far as a metric could share them.

    `identity_weights`: the recogniser that checks identity; a reward that uses the same one shares it.
    """
    return {name: _parts(name, settings, identity_weights) for name in names}


def _parts(name: str, settings: ToolSettings, identity_weights: str) -> frozenset[str]:
    if name == "lpips":
        return frozenset({_BACKBONES.get(settings.lpips_net, settings.lpips_net)})
    if name == "identity" and settings.identity_model == identity_weights:
        return frozenset({"recogniser"})
    if name.startswith(PYIQA):
        metric = name.removeprefix(PYIQA)
        return frozenset({metric, metric.split("-")[0], _OF_PYIQA.get(metric, metric)})
    return _MADE_OF.get(name, frozenset())
