"""Tiny networks as ncnn pairs, written as ncnn's converter writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from torch import nn

FLOAT16_TAG = (0x01306B47).to_bytes(4, "little")


def tiny_rrdb(blocks: int = 2) -> nn.Module:
    """Returns an ESRGAN network of 6 channels with random weights that float16 holds."""
    torch.manual_seed(0)
    return half_values(ESRGAN(num_filters=6, num_blocks=blocks))


def tiny_compact() -> nn.Module:
    """Returns a compact ×4 network of 5 channels with random weights that float16 holds."""
    torch.manual_seed(0)
    return half_values(Compact(num_feat=5, num_conv=2, upscale=4))


def half_values(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
    return network.eval()


def write_pair(network: nn.Module, param: Path, *, half: bool) -> Path:
    """Writes the network's convolutions and PReLUs in their order; the wiring between them is left out."""
    lines, content = ["Input input 0 1 data"], b""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().numpy()
            out, _, side, _ = weight.shape
            line = (
                f"Convolution Conv_{len(lines)} 1 1 a b 0={out} 1={side} 4=1 5=1 6={weight.size} 9=2 -23310=1,2.0e-01"
            )
            if half:
                stored = weight.astype("<f2").tobytes()
                content += FLOAT16_TAG + stored + bytes(-len(stored) % 4)
            else:
                content += bytes(4) + weight.astype("<f4").tobytes()
            content += module.bias.detach().numpy().astype("<f4").tobytes()
        elif isinstance(module, nn.PReLU):
            line = f"PReLU PRelu_{len(lines)} 1 1 a b 0={module.num_parameters}"
            content += module.weight.detach().numpy().astype("<f4").tobytes()
        else:
            continue
        lines.append(line)
    lines.append("Interp Resize_9 1 1 b c 0=1 1=4.000000e+00 2=4.000000e+00")
    param.write_text("\n".join(["7767517", f"{len(lines)} {np.size(lines)}", *lines]) + "\n")
    param.with_suffix(".bin").write_bytes(content)
    return param
