"""Noise from a counter: the published generator's own words, and a sample's noise whatever is drawn beside it."""

from __future__ import annotations

import pytest
import torch

from shared.diffusion.counter_noise import NoiseKeys, philox
from shared.diffusion.sampler import SamplerSpec, sample
from shared.diffusion.schedule import NoiseSchedule, ScheduleConfig
from shared.seeds import derive_seed, noise_by_position
from tests.helpers.waiting import Waiting

SEEDS = [derive_seed(0, "member", i) for i in range(5)]
# The known answers that Random123 ships for philox4x32-10: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_generators_known_answers(counter, key, words):
    found = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert tuple(int(word) for word in found) == words


def test_a_samples_noise_is_its_own_in_every_batch_and_of_every_size():
    whole = NoiseKeys.of(SEEDS, "cpu").gaussian((6, 9, 7), stream=3)
    assert whole.shape == (5, 6, 9, 7)
    for i, seed in enumerate(SEEDS):
        assert torch.equal(NoiseKeys.of([seed], "cpu").gaussian((6, 9, 7), stream=3)[0], whole[i])
    assert torch.equal(NoiseKeys.of(SEEDS, "cpu").gaussian((4, 5, 7), stream=3), whole[:, :4, :5])


def test_it_is_normal_and_streams_and_samples_are_independent():
    keys = NoiseKeys.of(SEEDS, "cpu")
    drawn = [keys.gaussian((8, 64, 64), stream=stream) for stream in (0, 1)]
    both = torch.stack(drawn).double()
    count = both.numel()
    assert abs(both.mean()) < 4 / count**0.5
    assert abs(both.square().mean() - 1) < 4 * (2 / count) ** 0.5
    assert abs(both.pow(4).mean() - 3) < 4 * (96 / count) ** 0.5
    rows = both.flatten(2).flatten(0, 1)  # stream and sample
    assert (torch.corrcoef(rows) - torch.eye(10)).abs().max() < 5 / 32768**0.5
    channels = both.transpose(0, 2).flatten(1)
    assert (torch.corrcoef(channels) - torch.eye(8)).abs().max() < 5 / 40960**0.5


def test_overlapping_windows_of_a_picture_share_their_noise():
    keys = NoiseKeys.of(SEEDS[:1], "cpu")
    whole = keys.gaussian((3, 16, 16), stream=1)
    with noise_by_position((4, 8, 12, 8)):  # in a picture of 4×4 cells' pixels each: a window of 12×8 px, 12×8 cells
        assert torch.equal(keys.gaussian((3, 12, 8), stream=1), whole[:, :, 4:, 8:])


def denoiser(x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x_t) * (timesteps.view(-1, 1, 1, 1) / 1000)


@pytest.mark.parametrize("betas", ["cosine", "rectified_flow"])
def test_a_sampler_that_draws_on_the_device_never_waits(betas):
    schedule = NoiseSchedule.build(ScheduleConfig(betas=betas, prediction="flow" if betas != "cosine" else "x0"))
    spec = SamplerSpec(steps=4, eta=0.7, noise="device")
    shape = {"sample_seeds": SEEDS, "latent_shape": (4, 8, 8)}
    whole = sample(denoiser, schedule, spec, **shape)  # the tables come to the device once
    with Waiting() as waiting:
        again = sample(denoiser, schedule, spec, **shape)
    assert waiting.seen == []
    assert torch.equal(again, whole)
    alone = sample(denoiser, schedule, spec, sample_seeds=SEEDS[2:3], latent_shape=(4, 8, 8))
    assert torch.equal(alone[0], whole[2])
    other = sample(denoiser, schedule, SamplerSpec(steps=4, eta=0.7), **shape)
    assert not torch.equal(other, whole)
    assert spec.as_ode().noise == spec.canonical().noise == "device"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_what_the_cpu_draws():
    here, there = (NoiseKeys.of(SEEDS, device).gaussian((4, 64, 64), stream=2).cpu() for device in ("cpu", "cuda"))
    torch.testing.assert_close(there, here, rtol=0, atol=5e-6)
