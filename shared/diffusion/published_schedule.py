"""The noise schedule that a diffusers scheduler's config describes: a published model is drawn from as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.app.errors import UserError
from shared.diffusion.schedule import Betas, Prediction, ScheduleConfig

_BETAS: dict[str, Betas] = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
_FLOW = "FlowMatchEulerDiscreteScheduler"
# Samplers of one and the same noise schedule, given by its betas; here all are drawn from by DDIM.
_BY_BETAS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
)
# What changes the levels or the steps in a way that a schedule here cannot; None and false leave them as they are.
_REFUSED = (
    "trained_betas",
    "thresholding",
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
)


def from_diffusers(scheduler_config: Mapping[str, Any]) -> ScheduleConfig:
    """Returns the schedule that the content of a scheduler_config.json describes; what it leaves out is the class's default.

    Raises UserError for a scheduler that is none of DDIM's or DDPM's kin nor FlowMatchEuler, and for settings of one that
    move its levels in another way. `clip_sample` is not read: latents pass ±1.
    """
    name = scheduler_config.get("_class_name")
    if name != _FLOW and name not in _BY_BETAS:
        raise UserError(f"expected a scheduler among {', '.join((*_BY_BETAS, _FLOW))}, got {name!r}")
    import diffusers  # its schedulers take seconds to import

    try:
        config = dict(getattr(diffusers, name).from_config(dict(scheduler_config)).config)
        refused = [key for key in _REFUSED if config.get(key) not in (None, False)]
        if refused:
            raise UserError(f"a {name} with {refused[0]} = {config[refused[0]]} draws in a way that is not known here")
        if name == _FLOW:
            return ScheduleConfig(
                "rectified_flow",
                train_timesteps=config["num_train_timesteps"],
                prediction="flow",
                timestep_spacing="linspace",
                shift=float(config["shift"]),
            )
        return ScheduleConfig(
            betas=_BETAS[config["beta_schedule"]],
            train_timesteps=config["num_train_timesteps"],
            beta_start=config["beta_start"],
            beta_end=config["beta_end"],
            prediction=_PREDICTIONS[config["prediction_type"]],
            timestep_spacing=config["timestep_spacing"],
            steps_offset=config["steps_offset"] if config["timestep_spacing"] == "leading" else 0,
            zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
            ends_clean=config.get("set_alpha_to_one", True),
        )
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"a {name} of this kind is not known here ({reason})") from None
