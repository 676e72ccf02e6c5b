"""The U-Net of Stable Diffusion in two halves: the encoder with the middle block, and the decoder.

Where a ControlNet is trained, nothing that is trained reaches the first half: its outputs are the same in a rollout and in the
update that re-scores it. The halves do what `UNet2DConditionModel.forward` does, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from shared.app.errors import UserError
from shared.latent.model_folder import DiffusersPart

# Settings of UNet2DConditionModel that its class knows and Stable Diffusion 1 and 2 do not have.
_PLAIN = {
    "center_input_sample": (False,),
    "addition_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embeddings_concat": (False,),
    "time_embedding_act_fn": (None,),
}


def require_plain(unet: DiffusersPart, *, where: str) -> None:
    """Raises UserError for a U-Net that sees more than x_t, a time, a text and a class: Stable Diffusion XL's, for one."""
    for name, known in _PLAIN.items():
        value = unet.config.get(name)
        if value not in known:
            raise UserError(f"the unet of {where} has {name}: {value}; expected one of Stable Diffusion 1 or 2")


def first_half_is_frozen(unet: DiffusersPart) -> bool:
    """Whether no weight of the encoder or the middle block is trained."""
    second = ("up_blocks.", "conv_norm_out.", "conv_out.")
    return not any(p.requires_grad for name, p in unet.named_parameters() if not name.startswith(second))


def first_half(
    unet: DiffusersPart,
    x_t: torch.Tensor,
    timesteps: torch.Tensor,
    text: torch.Tensor,
    *,
    class_labels: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Returns `middle`, the middle block's output, the `skip`s 0, 1, … into the decoder and `time`, the embedded time.

    x_t: [B, C, h, w] with h and w multiples of the U-Net's; timesteps: [B]; text: [B, tokens, channels].
    """
    x_t, text = x_t.to(unet.dtype), text.to(unet.dtype)
    time = unet.time_embedding(unet.get_time_embed(sample=x_t, timestep=timesteps))
    of_class = unet.get_class_embed(sample=x_t, class_labels=class_labels)
    if of_class is not None:
        time = time + of_class
    hidden = unet.conv_in(x_t)
    skips = [hidden]
    for block in unet.down_blocks:
        hidden, new = block(hidden, time, **_seen(block, text))
        skips += new
    hidden = unet.mid_block(hidden, time, **_seen(unet.mid_block, text))
    return {"middle": hidden, "time": time} | {f"skip {i}": skip for i, skip in enumerate(skips)}


def second_half(
    unet: DiffusersPart,
    features: Mapping[str, torch.Tensor],
    text: torch.Tensor,
    *,
    added_to_skips: Sequence[torch.Tensor] = (),
    added_to_middle: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the U-Net's output [B, C, h, w] in float32 from `first_half`'s, to which a ControlNet's output is added."""
    dtype, text, hidden, time = unet.dtype, text.to(unet.dtype), features["middle"], features["time"]
    skips = [features[f"skip {i}"] for i in range(sum(name.startswith("skip ") for name in features))]
    if added_to_middle is not None:
        skips = [skip + added.to(dtype) for skip, added in zip(skips, added_to_skips, strict=True)]
        hidden = hidden + added_to_middle.to(dtype)
    for block in unet.up_blocks:
        count = len(block.resnets)
        skips, own = skips[:-count], skips[-count:]
        hidden = block(hidden, temb=time, res_hidden_states_tuple=tuple(own), **_seen(block, text))
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden).float()


def _seen(block: torch.nn.Module, text: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
