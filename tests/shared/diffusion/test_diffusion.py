"""Schedules, transitions and the sampling loop, against torch.distributions and diffusers' schedulers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from shared.diffusion.sampler import SamplerSpec, StepRecord, sample
from shared.diffusion.schedule import NoiseSchedule, ScheduleConfig
from shared.diffusion.transition import StepTimes, log_prob_map, step_std, take_step, transition, transition_towards

VP_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
CONFIGS = [
    ScheduleConfig("cosine", prediction="v"),
    ScheduleConfig("scaled_linear", prediction="epsilon"),
    ScheduleConfig("linear", prediction="x0"),
    ScheduleConfig("rectified_flow", prediction="flow"),
]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.betas)
def test_prediction_target_is_inverted(config):
    schedule = NoiseSchedule.build(config)
    x0, noise = randn(4, 3, 5, 5), randn(4, 3, 5, 5, seed=1)
    timesteps = torch.tensor([20, 300, 600, 900])
    x_t = schedule.add_noise(x0, noise, timesteps)
    x0_pred, noise_pred = schedule.to_x0_and_noise(schedule.target(x0, noise, timesteps), x_t, timesteps)
    torch.testing.assert_close(x0_pred, x0, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(noise_pred, noise, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("betas", ["cosine", "linear", "scaled_linear"])
@pytest.mark.parametrize("prediction", list(VP_PREDICTIONS))
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_step_equals_diffusers(betas, prediction, eta):
    config = ScheduleConfig(betas, prediction=prediction)
    reference = DDIMScheduler(
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="squaredcos_cap_v2" if betas == "cosine" else betas,
        prediction_type=VP_PREDICTIONS[prediction],
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    reference.set_timesteps(10)
    schedule = NoiseSchedule.build(config)
    assert schedule.sampling_timesteps(10)[:-1] == reference.timesteps.tolist()
    torch.testing.assert_close(schedule.alphas[:-1].square().float(), reference.alphas_cumprod, atol=1e-9, rtol=1e-3)
    output, x_t, noise = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=2)
    for t, prev_t in ((899, 799), (499, 399), (99, -1)):
        ours = take_step(transition(schedule, output, x_t, StepTimes(t, prev_t, eta)), noise=noise)
        theirs = reference.step(output, t, x_t, eta=eta, variance_noise=noise if eta else None).prev_sample
        torch.testing.assert_close(ours.prev, theirs, atol=2e-5, rtol=2e-5)


def test_deterministic_flow_step_equals_diffusers():
    reference = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    schedule = NoiseSchedule.build(ScheduleConfig("rectified_flow", prediction="flow"))
    output, x_t = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    reference.set_timesteps(sigmas=[0.8, 0.5])
    theirs = reference.step(output, reference.timesteps[0], x_t).prev_sample
    ours = transition(schedule, output, x_t, StepTimes(799, 499, 0.0)).mean
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_flow_step_by_hand():
    # σ = .5 → .4, α = .5 → .6 and η = 1/2: the posterior's √(1 − (.5·.4 / (.6·.5))²) = √(5/9), so s = .2·√5/3 and
    # √(.4² − s²) = √(.16 − .2/9) = .371184.
    # x = 1, v = 2: x̂_0 = x − σ·v = 0 and ε̂ = x + (1 − σ)·v = 2, so μ = .6·0 + .371184·2 = .742369.
    schedule = NoiseSchedule.build(ScheduleConfig("rectified_flow", prediction="flow"))
    gaussian = transition(schedule, torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1), StepTimes(499, 399, 1 / 2))
    assert gaussian.std == pytest.approx(0.2 * 5**0.5 / 3, rel=1e-12)
    assert gaussian.mean.item() == pytest.approx(0.742369, abs=1e-6)


def told_sigma(schedule: NoiseSchedule, times: StepTimes) -> float:
    return float(schedule.sigmas[times.prev_t])


@pytest.mark.parametrize("eta", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("steps", [4, 8, 20, 50])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.betas)
def test_the_noise_in_x_t_is_what_the_network_is_told(config, steps, eta):
    # For x_0 = 0 and a network that knows it, x_t is noise alone and a step is linear in it: x_s = c·x_t + s·z. So
    # its deviation n follows n_s² = c²·n_t² + s², from n = 1 at pure noise, without drawing anything.
    schedule = NoiseSchedule.build(config)
    x_t = torch.ones(1, 1, 1, 1)
    deviation, ratios = 1.0, []
    for times in SamplerSpec(steps=steps, eta=eta).plan(schedule)[:-1]:
        gaussian = transition_towards(schedule, torch.zeros_like(x_t), x_t, times)
        deviation = math.hypot(gaussian.mean.item() * deviation, gaussian.std)
        ratios.append(deviation / told_sigma(schedule, times))
    assert ratios == pytest.approx([1.0] * (steps - 1), abs=0.01)


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3]], ids=lambda c: c.betas)
def test_the_noise_that_the_loop_draws_is_what_the_network_is_told(config):
    schedule = NoiseSchedule.build(config)
    x0 = randn(1, 3, 128, 128)  # 49152 elements: the standard error of a deviation is .3 %
    ratios = []

    def perfect(x_t, timesteps):
        alpha, sigma = schedule.alpha_sigma(timesteps)
        return schedule.target(x0, (x_t - alpha * x0) / sigma, timesteps)

    def measure(step: StepRecord) -> None:
        sigma = told_sigma(schedule, step.times)
        if sigma > 0.0:
            noise = step.scored.prev - float(schedule.alphas[step.times.prev_t]) * x0
            ratios.append(float(noise.std()) / sigma)

    spec = SamplerSpec(steps=8, eta=1.0)
    sample(perfect, schedule, spec, sample_seeds=[3], latent_shape=(3, 128, 128), on_step=measure)
    assert ratios == pytest.approx([1.0] * 7, abs=0.01)


def drawn_gaussian(schedule: NoiseSchedule, spec: SamplerSpec, *, mean: float, deviation: float) -> torch.Tensor:
    """Returns [4, 1, 128, 128] sampled with the best possible prediction for data N(mean, deviation²)."""

    def ideal(x_t, timesteps):
        alpha, sigma = schedule.alpha_sigma(timesteps)
        noise = sigma * (x_t - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)
        x0 = mean + alpha * deviation**2 * (x_t - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)
        return schedule.target(x0, noise, timesteps)

    return sample(ideal, schedule, spec, sample_seeds=range(4), latent_shape=(1, 128, 128))


@pytest.mark.parametrize(
    ("config", "steps"), [(CONFIGS[0], 10), (CONFIGS[1], 10), (CONFIGS[3], 20)], ids=lambda p: getattr(p, "betas", p)
)
def test_stochastic_and_deterministic_ddim_agree_in_distribution(config, steps):
    schedule = NoiseSchedule.build(config)
    drawn = drawn_gaussian(schedule, SamplerSpec(steps=steps, eta=0.7), mean=1.0, deviation=0.5)
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)
    # DDIM on a coarse grid is biased low for any η < 1, so the deviation is compared with η = 0 on the same grid.
    ode = drawn_gaussian(schedule, SamplerSpec(steps=steps, eta=0.0), mean=1.0, deviation=0.5)
    assert drawn.std().item() == pytest.approx(ode.std().item(), abs=0.06)


@pytest.mark.parametrize(("eta", "kept"), [(0.0, 0.932), (0.5, 0.918), (1.0, 0.865)])
def test_stochastic_flow_steps_keep_nearly_all_of_the_datas_spread(eta, kept):
    # At 20 steps; the figures are those of docs/decisions.md.
    schedule = NoiseSchedule.build(CONFIGS[3])
    drawn = drawn_gaussian(schedule, SamplerSpec(steps=20, eta=eta), mean=1.0, deviation=0.5)
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)
    assert drawn.std().item() / 0.5 == pytest.approx(kept, abs=0.01)


def test_log_prob_equals_torch_distributions():
    mean, prev = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    expected = torch.distributions.Normal(mean, torch.tensor(0.3)).log_prob(prev)
    torch.testing.assert_close(log_prob_map(prev, mean, 0.3), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.betas)
def test_rescoring_a_drawn_step_returns_its_log_prob_bitwise(config):
    schedule = NoiseSchedule.build(config)
    output, x_t, noise = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=2)
    gaussian = transition(schedule, output, x_t, StepTimes(499, 399, 0.6))
    drawn = take_step(gaussian, noise=noise)
    again = take_step(transition(schedule, output, x_t, StepTimes(499, 399, 0.6)), prev=drawn.prev)
    assert drawn.log_prob_map.shape == (2, 4, 4)
    assert torch.equal(again.log_prob_map, drawn.log_prob_map)
    by_element = torch.distributions.Normal(gaussian.mean, torch.tensor(gaussian.std)).log_prob(drawn.prev)
    torch.testing.assert_close(drawn.log_prob_map, by_element.sum(dim=1), atol=1e-4, rtol=1e-5)


def test_bf16_outputs_are_scored_in_float32():
    schedule = NoiseSchedule.build(CONFIGS[0])
    output, x_t = randn(1, 3, 4, 4).bfloat16(), randn(1, 3, 4, 4, seed=1)
    gaussian = transition(schedule, output, x_t, StepTimes(499, 399, 0.6))
    assert torch.equal(gaussian.mean, transition(schedule, output.float(), x_t, StepTimes(499, 399, 0.6)).mean)
    scored = take_step(gaussian, noise=randn(1, 3, 4, 4, seed=2))
    assert gaussian.mean.dtype == scored.prev.dtype == scored.log_prob_map.dtype == torch.float32


def test_the_last_step_and_eta_zero_are_deterministic():
    schedule = NoiseSchedule.build(CONFIGS[0])
    assert step_std(schedule, StepTimes(124, -1, 1.0)) == 0.0
    assert SamplerSpec(steps=8, eta=0.0).stochastic_steps(schedule) == []
    assert SamplerSpec(steps=8, eta=0.5).stochastic_steps(schedule) == list(range(7))
    assert SamplerSpec(steps=8, eta=0.5, window_start=2, window=3).stochastic_steps(schedule) == [2, 3, 4]
    assert SamplerSpec(steps=1, eta=1.0).stochastic_steps(schedule) == []
    scored = take_step(transition(schedule, randn(1, 3, 4, 4), randn(1, 3, 4, 4), StepTimes(499, 399, 0.0)), noise=0)
    assert scored.log_prob_map is None


def test_a_picture_does_not_depend_on_its_batch():
    schedule = NoiseSchedule.build(CONFIGS[0])
    run = lambda seeds: sample(  # noqa: E731
        lambda x, t: 0.1 * x, schedule, SamplerSpec(steps=4), sample_seeds=seeds, latent_shape=(3, 4, 4)
    )
    assert torch.equal(run([5, 6, 7])[1], run([6])[0])


def test_one_noising_not_noise_upon_noise():
    # ᾱ of the closed form at t; noising cumulatively would leave a signal of Π α_i instead.
    schedule = NoiseSchedule.build(ScheduleConfig("scaled_linear", prediction="epsilon"))
    x_t = schedule.add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([401]))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert x_t.item() == pytest.approx(float((1 - betas[:402]).prod().sqrt()), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must lie between 1 and 1000, got 0"),
        ({"eta": 1.5}, "eta must lie between 0 and 1, got 1.5"),
        ({"steps": 4, "window_start": 2, "window": 3}, "window must lie between -1 and 2, got 3"),
    ],
)
def test_impossible_specs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SamplerSpec(**values)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SamplerSpec(8, 0.0), "8 steps, ODE"),
        (SamplerSpec(8, 1.0), "8 steps, SDE η 1"),
        (SamplerSpec(8, 0.5, window_start=2, window=3), "8 steps, SDE η 0.5 in steps 3 to 5"),
        (SamplerSpec(8, 0.5, window_start=6, window=2), "8 steps, SDE η 0.5 in step 7"),
        (SamplerSpec(8, 0.5, window=0), "8 steps, ODE"),
        (SamplerSpec(1, 1.0), "1 step, ODE"),
    ],
)
def test_a_sampler_says_whether_it_adds_noise(spec, words):
    assert spec.words() == words
    schedule = NoiseSchedule.build(CONFIGS[0])
    assert ("ODE" in words) == (spec.stochastic_steps(schedule) == [])
    assert spec.canonical().stochastic_steps(schedule) == spec.stochastic_steps(schedule)


def test_samplers_that_draw_alike_have_one_spelling():
    whole = [SamplerSpec(8, 0.5), SamplerSpec(8, 0.5, window=8), SamplerSpec(8, 0.5, window=7)]
    assert {spec.canonical() for spec in whole} == {SamplerSpec(8, 0.5)}
    none = [SamplerSpec(8, 0.0), SamplerSpec(8, 1.0, window=0), SamplerSpec(8, 1.0, 7), SamplerSpec(8, 0.0, 2, 3)]
    assert {spec.canonical() for spec in none} == {SamplerSpec(8, 0.0)}
    assert SamplerSpec(1, 1.0).canonical() == SamplerSpec(1, 0.0)
    assert SamplerSpec(8, 0.5, window=6).canonical() != SamplerSpec(8, 0.5)


def test_a_policy_trained_with_noise_can_be_deployed_without():
    # Whatever window it was trained in, the ODE has as many steps and none that adds noise.
    spec = SamplerSpec(steps=8, eta=0.7, window_start=2, window=3)
    schedule = NoiseSchedule.build(CONFIGS[0])
    assert spec.deployed("sde") == spec
    assert spec.deployed("ode") == spec.as_ode() == SamplerSpec(steps=8, eta=0.0)
    assert spec.as_ode().stochastic_steps(schedule) == []
    assert [(s.t, s.prev_t) for s in spec.as_ode().plan(schedule)] == [(s.t, s.prev_t) for s in spec.plan(schedule)]
    assert dataclasses.replace(spec, eta=0.0).deployed("sde").words() == spec.as_ode().words()
