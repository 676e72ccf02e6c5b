"""The former address of LPIPS's loader, for callers that have not moved yet."""

from shared.vision.perceptual import NETS, PairDistance, load_lpips, lpips_weights_path

__all__ = ["NETS", "PairDistance", "load_lpips", "lpips_weights_path"]
