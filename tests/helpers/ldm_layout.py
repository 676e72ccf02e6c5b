"""Latent diffusion's networks with its tensors' names, small and written from the papers alone: what is converted must
give the same outputs. DiffBIR's ControlNet sees [x_t, hint] as channels and adds to the UNet's skips."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 32


def unet_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-5)


def fine_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class TimeBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, time: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(unet_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, c_out))
        out = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.out_layers = nn.Sequential(unet_norm(c_out), nn.SiLU(), nn.Dropout(0.0), out)
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, emb, context):
        hidden = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class Attention(nn.Module):
    def __init__(self, width: int, context: int, head: int) -> None:
        super().__init__()
        self.heads = width // head
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.to_out((weight @ v).transpose(1, 2).flatten(2))


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, head: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(width, width, head), Attention(width, context, head)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(Gate(width), nn.Dropout(0.0), nn.Linear(4 * width, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, context):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff.net(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, head: int) -> None:
        super().__init__()
        self.norm = fine_norm(width)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context, head)])

    def forward(self, x, emb, context):
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, context))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, emb, context):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, emb, context):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Plain(nn.Conv2d):
    def forward(self, x, emb, context):
        return super().forward(x)


class Steps(nn.Sequential):
    def forward(self, x, emb, context):
        for layer in self:
            x = layer(x, emb, context)
        return x


class DownPath(nn.Module):
    """What UNet and ControlNet share; the level before the last attends, the last does not."""

    def __init__(self, c_in: int, widths: tuple[int, ...], layers: int, context: int, head: int) -> None:
        super().__init__()
        self.model_channels, time = widths[0], 4 * widths[0]
        self.time_embed = nn.Sequential(nn.Linear(widths[0], time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks = nn.ModuleList([Steps(Plain(c_in, widths[0], 3, padding=1))])
        self.widths_down, width = [widths[0]], widths[0]
        for level, wide in enumerate(widths):
            for _ in range(layers):
                block = [TimeBlock(width, wide, time)]
                if level < len(widths) - 1:
                    block.append(SpatialTransformer(wide, context, head))
                self.input_blocks.append(Steps(*block))
                self.widths_down.append(wide)
                width = wide
            if level < len(widths) - 1:
                self.input_blocks.append(Steps(Down(wide)))
                self.widths_down.append(wide)
        middle = (
            TimeBlock(width, width, time),
            SpatialTransformer(width, context, head),
            TimeBlock(width, width, time),
        )
        self.middle_block = Steps(*middle)

    def embed(self, t):
        half = self.model_channels // 2
        angles = t[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        return self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LdmControlNet(DownPath):
    def __init__(self, latent: int, widths, layers: int, context: int, head: int) -> None:
        super().__init__(2 * latent, widths, layers, context, head)
        self.zero_convs = nn.ModuleList(Steps(Plain(wide, wide, 1)) for wide in self.widths_down)
        self.middle_block_out = Steps(Plain(widths[-1], widths[-1], 1))

    def forward(self, x, hint, t, context):
        hidden, emb, added = torch.cat([x, hint], dim=1), self.embed(t), []
        for block, zero in zip(self.input_blocks, self.zero_convs, strict=True):
            hidden = block(hidden, emb, context)
            added.append(zero(hidden, emb, context))
        return [*added, self.middle_block_out(self.middle_block(hidden, emb, context), emb, context)]


class LdmUNet(DownPath):
    def __init__(self, latent: int, widths, layers: int, context: int, head: int) -> None:
        super().__init__(latent, widths, layers, context, head)
        self.output_blocks, skips, width, time = nn.ModuleList(), list(self.widths_down), widths[-1], 4 * widths[0]
        for level, wide in reversed(list(enumerate(widths))):
            for layer in range(layers + 1):
                block = [TimeBlock(width + skips.pop(), wide, time)]
                width = wide
                if level < len(widths) - 1:
                    block.append(SpatialTransformer(wide, context, head))
                if level and layer == layers:
                    block.append(Up(wide))
                self.output_blocks.append(Steps(*block))
        self.out = nn.Sequential(unet_norm(width), nn.SiLU(), nn.Conv2d(width, latent, 3, padding=1))

    def forward(self, x, t, context, control):
        emb, kept, control = self.embed(t), [], list(control)
        for block in self.input_blocks:
            x = block(x, emb, context)
            kept.append(x)
        x = self.middle_block(x, emb, context) + control.pop()
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop() + control.pop()], dim=1), emb, context)
        return self.out(x)


class VaeBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = fine_norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = fine_norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        hidden = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class VaeAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = fine_norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[-2:]))


class Named(nn.Module):
    """Holds modules by name."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class LdmVae(nn.Module):
    def __init__(self, latent: int, widths: tuple[int, ...], layers: int) -> None:
        super().__init__()
        top = widths[-1]
        self.encoder = self._ends(3, widths[0], top, 2 * latent)
        self.decoder = self._ends(latent, top, widths[0], 3)
        self.encoder.mid, self.decoder.mid = self._middle(top), self._middle(top)
        self.encoder.down, width = nn.ModuleList(), widths[0]
        for level, wide in enumerate(widths):
            blocks = nn.ModuleList(VaeBlock(width if i == 0 else wide, wide) for i in range(layers))
            down = Named(conv=nn.Conv2d(wide, wide, 3, stride=2)) if level < len(widths) - 1 else None
            self.encoder.down.append(Named(block=blocks, **({"downsample": down} if down else {})))
            width = wide
        ups = []
        for level, wide in reversed(list(enumerate(widths))):
            blocks = nn.ModuleList(VaeBlock(width if i == 0 else wide, wide) for i in range(layers + 1))
            up = Named(conv=nn.Conv2d(wide, wide, 3, padding=1)) if level else None
            ups.insert(0, Named(block=blocks, **({"upsample": up} if up else {})))
            width = wide
        self.decoder.up = nn.ModuleList(ups)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    @staticmethod
    def _ends(c_in: int, first: int, last: int, c_out: int) -> nn.Module:
        conv_in, conv_out = nn.Conv2d(c_in, first, 3, padding=1), nn.Conv2d(last, c_out, 3, padding=1)
        return Named(conv_in=conv_in, norm_out=fine_norm(last), conv_out=conv_out)

    @staticmethod
    def _middle(width: int) -> nn.Module:
        return Named(block_1=VaeBlock(width, width), attn_1=VaeAttention(width), block_2=VaeBlock(width, width))

    def encode(self, images):
        """Returns the mean of the latent's distribution."""
        part, x = self.encoder, self.encoder.conv_in(images)
        for level in part.down:
            for block in level.block:
                x = block(x)
            if hasattr(level, "downsample"):
                x = level.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        x = part.mid.block_2(part.mid.attn_1(part.mid.block_1(x)))
        return self.quant_conv(part.conv_out(F.silu(part.norm_out(x)))).chunk(2, dim=1)[0]

    def decode(self, latent):
        part, x = self.decoder, self.decoder.conv_in(self.post_quant_conv(latent))
        x = part.mid.block_2(part.mid.attn_1(part.mid.block_1(x)))
        for level in reversed(part.up):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample"):
                x = level.upsample.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return part.conv_out(F.silu(part.norm_out(x)))


class TextLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)
        self.mlp = Named(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))

    def forward(self, x, mask):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


class LdmText(nn.Module):
    """OpenCLIP's text encoder as Stable Diffusion 2 uses it: the state after the layer before the last, normalised."""

    def __init__(self, vocabulary: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width) * 0.1)
        self.transformer = Named(resblocks=nn.ModuleList(TextLayer(width) for _ in range(layers)))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection, self.logit_scale = nn.Parameter(torch.randn(width, width)), nn.Parameter(torch.ones([]))

    def forward(self, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        for layer in self.transformer.resblocks[:-1]:
            x = layer(x, mask)
        return self.ln_final(x)


class LdmModel(nn.Module):
    """A whole restorer under the prefixes of DiffBIR v1's checkpoint."""

    def __init__(self, *, latent: int = 4, widths=(32, 64), layers: int = 1, context: int = 32, head: int = 16) -> None:
        super().__init__()
        self.model = Named(diffusion_model=LdmUNet(latent, widths, layers, context, head))
        self.control_model = LdmControlNet(latent, widths, layers, context, head)
        self.first_stage_model = LdmVae(latent, widths, layers)
        self.cond_stage_model = Named(model=LdmText(99, context, 3, 7))


def random_ldm(seed: int = 0) -> LdmModel:
    """Returns the restorer with weights of its own everywhere, normalisations included."""
    torch.manual_seed(seed)
    model = LdmModel().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))
            elif "zero_convs" in name:
                tensor.copy_(0.2 * torch.randn_like(tensor))
    return model
