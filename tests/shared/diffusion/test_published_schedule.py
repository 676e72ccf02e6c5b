"""Schedules of published models: tables, timesteps and steps are those of diffusers' own schedulers."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch

from shared.app.errors import UserError
from shared.diffusion.published_schedule import from_diffusers
from shared.diffusion.sampler import SamplerSpec
from shared.diffusion.schedule import NoiseSchedule, ScheduleConfig
from shared.diffusion.transition import StepTimes, take_step, transition

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
VP = {
    "Stable Diffusion 2": (diffusers.DDIMScheduler, {**STABLE, "set_alpha_to_one": False, "steps_offset": 1}),
    "zero terminal SNR": (
        diffusers.DDIMScheduler,
        {
            **STABLE,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
    "cosine, x0": (diffusers.DDIMScheduler, {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}),
    "DDPM, linspace": (diffusers.DDPMScheduler, {"timestep_spacing": "linspace", "clip_sample": False}),
}


def written(scheduler: diffusers.SchedulerMixin) -> dict:
    """Returns what its scheduler_config.json would say."""
    return json.loads(scheduler.to_json_string())


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("name", VP)
def test_tables_and_timesteps_are_those_of_diffusers(name, steps):
    kind, settings = VP[name]
    theirs = kind(**settings)
    theirs.set_timesteps(steps)
    ours = NoiseSchedule.build(from_diffusers(written(theirs)))
    torch.testing.assert_close(ours.alphas[:-1].square().float(), theirs.alphas_cumprod, atol=1e-6, rtol=0)
    assert ours.sampling_timesteps(steps)[:-1] == theirs.timesteps.tolist()


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["Stable Diffusion 2", "zero terminal SNR"])
def test_a_whole_chain_equals_diffusers(name, eta):
    kind, settings = VP[name]
    theirs = kind(**settings)
    theirs.set_timesteps(20)
    # At η = 1 theirs takes √(1 − ᾱ − variance) of what float32 leaves of 0: 3e-4.
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    ours = NoiseSchedule.build(from_diffusers(written(theirs)))
    network, noises = randn(3, 3) / 3, randn(20, 2, 3, 4, 4, seed=2)
    x, reference = randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=1)
    for times, noise in zip(SamplerSpec(steps=20, eta=eta).plan(ours), noises, strict=True):
        x = take_step(transition(ours, torch.einsum("oc,bchw->bohw", network, x), x, times), noise=noise).prev
        output = torch.einsum("oc,bchw->bohw", network, reference)
        # The last step never adds noise here.
        stochastic = {"eta": eta, "variance_noise": noise} if times.eta else {}
        reference = theirs.step(output, times.t, reference, **stochastic).prev_sample.float()
        torch.testing.assert_close(x, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_visits_and_tells_the_times_of_diffusers(shift, steps):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = NoiseSchedule.build(from_diffusers(written(theirs)))
    torch.testing.assert_close(ours.sigmas[:-1].flip(0).float(), theirs.sigmas, atol=1e-6, rtol=0)
    theirs.set_timesteps(steps)
    times = ours.sampling_timesteps(steps)
    sigmas = torch.tensor([ours.level(t)[1] for t in times])
    torch.testing.assert_close(sigmas, theirs.sigmas, atol=1e-6, rtol=0)
    told = torch.cat([ours.model_times(ours.batch_at(t, 1, "cpu")) for t in times[:-1]])
    torch.testing.assert_close(told, theirs.timesteps, atol=1e-3, rtol=0)
    x, reference = randn(1, 3, 4, 4), randn(1, 3, 4, 4)
    for step, t in zip(SamplerSpec(steps=steps, eta=0.0).plan(ours), theirs.timesteps, strict=True):
        x = transition(ours, 0.3 * x, x, step).mean
        reference = theirs.step(0.3 * reference, t, reference).prev_sample
    torch.testing.assert_close(x, reference, atol=1e-5, rtol=1e-5)


def test_the_shift_by_hand():
    # shift 3, u = 1/4: σ = 3·.25 / (1 + 2·.25) = .5; of 4 timesteps the first. Halfway to the next, u = 3/8: 9/8 / 7/4.
    schedule = NoiseSchedule.build(ScheduleConfig("rectified_flow", train_timesteps=4, prediction="flow", shift=3.0))
    assert schedule.level(0) == (0.5, 0.5)
    assert schedule.level(0.5)[1] == pytest.approx(9 / 14)
    assert schedule.level(-1) == (1.0, 0.0)
    between = schedule.alpha_sigma(torch.tensor([0.5, 0.0]))[1]
    torch.testing.assert_close(between.flatten(), torch.tensor([9 / 14, 0.5]))


def test_one_step_begins_at_noise_and_too_many_are_refused():
    leading = NoiseSchedule.build(ScheduleConfig("linear", timestep_spacing="leading", steps_offset=1))
    assert leading.sampling_timesteps(1) == [999, -1]
    assert leading.sampling_timesteps(2) == [501, 1, -1]
    with pytest.raises(ValueError, match="begin beyond the last timestep"):
        leading.sampling_timesteps(1000)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "LCMScheduler"}, "expected a scheduler among DDIMScheduler"),
        ({}, "expected a scheduler among"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding = True draws in a way"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "other"}, "of this kind is not known here"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "of this kind is not known here"),
    ],
)
def test_a_schedule_that_is_not_known_is_one_line(config, message):
    with pytest.raises(UserError, match=message) as caught:
        from_diffusers(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shift": 3.0}, "shift is for betas: rectified_flow"),
        ({"zero_terminal_snr": True, "prediction": "epsilon"}, "noise cannot be predicted"),
        ({"steps_offset": 1000}, "steps_offset"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig("scaled_linear", **values)


def test_the_end_of_a_chain_is_as_the_scheduler_says():
    # ends_clean false: α of timestep 0, √(1 − .00085) = .999575.
    schedule = NoiseSchedule.build(ScheduleConfig("scaled_linear", ends_clean=False))
    assert schedule.level(-1)[0] == pytest.approx(0.999575, abs=1e-6)
    gaussian = transition(schedule, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), StepTimes(0, -1, 0.0))
    assert gaussian.std == 0.0
