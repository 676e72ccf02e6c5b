"""The kinds of diffusion policy by name. A class is imported when a policy of its kind is asked for: some take seconds."""

from __future__ import annotations

from importlib import import_module

from shared.app.errors import UserError
from shared.policies.interface import DiffusionPolicy

# {kind, as config.json has it: module and class}
KINDS = {
    "pixel_unet": ("shared.policies.pixel_unet", "PixelUNet"),
    "latent_controlnet": ("shared.policies.latent_controlnet", "LatentControlNet"),
    "latent_concat": ("shared.policies.latent_concat", "LatentConcat"),
    "flow_transformer": ("shared.policies.flow_transformer", "FlowTransformer"),
}
# {class in a diffusers folder's model_index.json: the kind of policy that it can serve as}
PIPELINES = {
    "StableDiffusionPipeline": "latent_controlnet",
    "StableDiffusionControlNetPipeline": "latent_controlnet",
    "StableDiffusionUpscalePipeline": "latent_concat",
    "LDMSuperResolutionPipeline": "latent_concat",
    "StableDiffusion3Pipeline": "flow_transformer",
    "StableDiffusion3ControlNetPipeline": "flow_transformer",
}


def policy_class(kind: object, *, where: str) -> type[DiffusionPolicy]:
    """Returns the class of a kind of policy. Raises UserError where `where` holds no kind that is known."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"expected a diffusion policy ({', '.join(KINDS)}) in {where}, but it holds a {kind!r}")
    module, name = KINDS[kind]
    return getattr(import_module(module), name)
