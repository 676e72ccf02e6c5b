"""What a network of the pool must show when its training ends: that it restores, and does not return interpolation.

A network that leaves its input as it is plants no artifact of its own, and a reward model learns nothing from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data.degradation.pairs import PairDataset, collate_pairs
from data.degradation.records import SCALES
from shared.app.config import require_range
from shared.app.errors import UserError
from shared.restorers.interpolation import BicubicRestorer
from shared.restorers.protocol import Restorer
from shared.seeds import derive_seed
from shared.vision.metrics import METRICS

BATCH = 16  # pictures that go through a network together
METRIC_OF = {"l1": "psnr", "gan": "gradient_distance"}  # what each network is trained for, as a metric by name
UNIT_OF = {"psnr": " dB", "gradient_distance": ""}


@dataclass(frozen=True)
class CheckConfig:
    """By how much each network must beat interpolation on validation pairs when its training ends."""

    pairs: int = 128  # validation pairs that each network is checked on
    l1_margin_db: float = 0.1  # least gain in PSNR of the network trained on L1
    # Least fall of the second network's gradient distance, the part of LPIPS that needs no weights, in [0, 1].
    gan_margin: float = 0.005

    def __post_init__(self) -> None:
        require_range(
            **{
                "check.pairs": (self.pairs, 1, 1e6),
                "check.l1_margin_db": (self.l1_margin_db, -100, 100),
                "check.gan_margin": (self.gan_margin, -1, 1),
            }
        )

    def margin(self, network: str) -> float:
        """Returns the least gain of the network `l1` (dB) or `gan`."""
        return self.l1_margin_db if network == "l1" else self.gan_margin


@dataclass(frozen=True)
class Check:
    """How a network does beside interpolation, in the mean over the pairs."""

    network: str  # l1 | gan
    metric: str
    value: float
    interpolation: float  # bicubic enlargement for sr, the input itself for a face

    @property
    def gain(self) -> float:
        """By how much the network is better than interpolation: above 0 whichever way the metric points."""
        if METRICS[self.metric].higher_is_better:
            return self.value - self.interpolation
        return self.interpolation - self.value

    def says(self) -> str:
        """Returns the figures in words."""
        unit, digits = UNIT_OF[self.metric], 2 if self.metric == "psnr" else 4
        return f"{self.metric} {self.value:.{digits}f}{unit}, interpolation has {self.interpolation:.{digits}f}{unit}"


def check_network(
    network: str, restorer: Restorer, pairs: PairDataset, config: CheckConfig, *, device: torch.device
) -> Check:
    """Returns how the restorer on `device` does on validation pairs. Raises UserError where it gains less than its margin."""
    check = measure_network(network, restorer, pairs, device=device)
    margin = config.margin(network)
    if not check.gain >= margin:  # also where it is not a number
        key, more = ("l1_margin_db", " in another folder") if network == "l1" else ("gan_margin", "")
        raise UserError(
            f"the pool's network {network} for {pairs.task} does not restore: on {len(pairs)} validation pairs "
            f"{check.says()}; expected to be better by {margin:g}, got {check.gain:.3g}. Raise {network}_iterations={more}, "
            f"or lower check.{key}="
        )
    return check


def measure_network(network: str, restorer: Restorer, pairs: PairDataset, *, device: torch.device) -> Check:
    """Returns the means over all pairs of a network on `device` and of interpolation, by the network's metric."""
    metric, interpolation = METRIC_OF[network], BicubicRestorer(SCALES[pairs.task])
    sums = {"network": 0.0, "interpolation": 0.0}
    for first in range(0, len(pairs), BATCH):
        some = collate_pairs([pairs[index] for index in range(first, min(first + BATCH, len(pairs)))])
        seeds = [
            derive_seed(pairs.seed, "check", name, n) for name, n in zip(some.image_ids, some.indices, strict=True)
        ]
        sr = restorer.restore(some.lq.to(device), sample_seeds=seeds).cpu()
        plain = interpolation.restore(some.lq, sample_seeds=seeds)
        for name, picture in (("network", sr), ("interpolation", plain)):
            sums[name] += float(METRICS[metric].function(picture, some.gt).sum())
    return Check(network, metric, *(total / len(pairs) for total in sums.values()))
