"""Gathers the exemplar restorer's blocks: parts of training pictures, with the detail that their degraded versions lack."""

from __future__ import annotations

import torch

from data.degradation.pairs import PairDataset
from data.degradation.records import SCALES
from shared.restorers.exemplar import ExemplarConfig, ExemplarRestorer, block_details, block_keys
from shared.seeds import numpy_rng

BLOCKS_PER_PAIR = 24


def gather_exemplars(pairs: PairDataset, *, blocks: int, seed: int) -> ExemplarRestorer:
    """Returns an exemplar restorer of about `blocks` blocks, the same number from each of the first pairs."""
    config = ExemplarConfig(scale=SCALES[pairs.task])
    keys, details = [], []
    for index in range(min(len(pairs), -(-blocks // BLOCKS_PER_PAIR))):
        pair = pairs[index]
        side = pair.gt.shape[-1] // config.block_px * config.block_px  # whole blocks only
        gt, lq = pair.gt[None, :, :side, :side], pair.lq[None, :, : side // config.scale, : side // config.scale]
        found, contrast = block_keys(lq, config)
        missing = block_details(gt, lq, config)[0] / contrast[0][:, None, None, None]
        rng = numpy_rng(seed, "exemplars", pair.image_id, index)
        picked = rng.permutation(found.shape[1])[:BLOCKS_PER_PAIR]
        keys.append(found[0, picked])
        details.append(missing[picked])
    return ExemplarRestorer(config, torch.cat(keys), torch.cat(details))
