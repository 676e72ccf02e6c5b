"""MobileFaceNet (arXiv 1804.07573): a face recogniser of a million weights, small enough to use on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from shared.app.errors import UserError

# (expansion, channels, repeats, stride) of each run of bottlenecks: the paper's table 1.
_BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class MobileFaceNet(nn.Module):
    """Returns embeddings [B, 128], not normalised, of RGB face crops [B, 3, 112, 96] in [−1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _ConvBlock(3, 64, kernel=3, stride=2, padding=1)
        self.dw_conv1 = _ConvBlock(64, 64, kernel=3, padding=1, groups=64)
        blocks, channels = [], 64
        for expansion, width, repeats, stride in _BOTTLENECKS:
            for position in range(repeats):
                blocks.append(_Bottleneck(channels, width, expansion, stride if position == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = _ConvBlock(channels, 512, kernel=1)
        self.linear7 = _ConvBlock(512, 512, kernel=(7, 6), groups=512, linear=True)
        self.linear1 = _ConvBlock(512, 128, kernel=1, linear=True)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks(self.dw_conv1(self.conv1(faces)))
        return self.linear1(self.linear7(self.conv2(hidden))).flatten(1)

    @classmethod
    def load(cls, path: str | Path) -> MobileFaceNet:
        """Returns the network with a file's weights: .safetensors, or a torch file of tensors, under `net_state_dict`
        or bare. Raises UserError when the file is another network's."""
        network = cls()
        try:
            if Path(path).suffix == ".safetensors":
                from safetensors.torch import load_file  # only this path needs it

                weights = load_file(path)
            else:
                weights = torch.load(path, map_location="cpu", weights_only=True)
            network.load_state_dict(weights.get("net_state_dict", weights))
        except Exception as error:  # a torn file, another network: torch and safetensors raise a dozen kinds
            raise UserError(
                f"expected MobileFaceNet's weights (112×96 px, 128 numbers) in {path}, but they do not load: "
                f"{str(error).splitlines()[0]}"
            ) from None
        return network


class _ConvBlock(nn.Module):
    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.prelu = None if linear else nn.PReLU(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x))
        return x if self.prelu is None else self.prelu(x)


class _Bottleneck(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = channels_in * expansion
        self.keeps_shape = stride == 1 and channels_in == channels_out
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.keeps_shape else self.conv(x)
