"""The pool's own restorers: what the losses ask for, and a stopped training that ends like one never stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data.train_pool
from data.degradation.pairs import PairConfig, pairs_for_task
from data.degradation.records import SCALES
from data.pool.critic import Critic, critic_loss, gradient_energy
from data.pool.exemplars import gather_exemplars
from data.pool.network_check import CheckConfig, check_network, measure_network
from data.sources.open_source import SourceConfig
from data.train_pool import learning_rate, load_config, main
from shared.app.errors import UserError
from shared.policies.load import load_restorer
from shared.restorers.interpolation import BicubicRestorer
from tests.helpers.places import CONFIGS
from tests.helpers.pool_networks import UNCHECKED

CONFIG = CONFIGS / "pool.yaml"
TINY = [
    "source.embedded_images=6",
    "sr_pairs.pairs=8",
    "face_pairs.pairs=8",
    "sr_pairs.crop_px=32",
    "face_pairs.crop_px=32",
    "channels=8",
    "blocks=1",
    "critic_channels=4",
    "exemplars=100",
    "l1_iterations=3",
    "gan_iterations=3",
    "batch_size=2",
    "cpu_threads=1",
    "checkpoint_every=2",
    *UNCHECKED,
]


def train(out: Path, task: str = "sr") -> dict[str, dict[str, torch.Tensor]]:
    main([str(CONFIG), f"out={out}", f"task={task}", *TINY])
    return {path.parent.name: load_file(path) for path in sorted(out.glob("*/model.safetensors"))}


def test_a_stopped_training_ends_like_one_never_stopped(tmp_path, monkeypatch, capsys):
    whole = train(tmp_path / "whole")
    assert set(whole) == {"l1", "gan", "exemplar"}
    steps, gan_step = [], data.train_pool.gan_step

    def stop_at_the_second(*arguments):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return gan_step(*arguments)

    monkeypatch.setattr(data.train_pool, "gan_step", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    monkeypatch.undo()
    resumed = train(tmp_path / "stopped")
    for name, tensors in whole.items():
        for key, tensor in tensors.items():
            assert torch.equal(resumed[name][key], tensor), (name, key)
    capsys.readouterr()
    train(tmp_path / "whole")
    assert capsys.readouterr().out.startswith("finished: pool networks sr: ")


@pytest.mark.parametrize(("task", "scale"), [("sr", 4), ("face", 1)])
def test_each_task_has_its_own_restorers(tmp_path, task, scale):
    for name in train(tmp_path / task, task):
        assert load_restorer(str(tmp_path / task / name)).scale == scale


def test_l1_training_lowers_the_error(tmp_path):
    settings = [*TINY, "l1_iterations=120", "gan_iterations=1", "batch_size=8", "channels=16"]
    main([str(CONFIG), f"out={tmp_path}", *settings])
    config = load_config(data.train_pool.TrainPoolConfig, [str(CONFIG), *settings])
    pairs = pairs_for_task(config.source, config.sr_pairs, task="sr", split="train", seed=0)
    gt = torch.stack([pairs[i].gt for i in range(8)])
    lq = torch.stack([pairs[i].lq for i in range(8)])
    trained = load_restorer(str(tmp_path / "l1")).restore(lq, sample_seeds=range(8))
    plain = torch.nn.functional.interpolate(lq, scale_factor=4, mode="bicubic").clamp(0, 1)
    assert (trained - gt).abs().mean() < 0.97 * (plain - gt).abs().mean()


def validation(task: str = "sr", pairs: int = 5):
    config = PairConfig(crop_px=32, pairs=pairs)
    return pairs_for_task(SourceConfig(embedded_images=6), config, task=task, split="val", seed=0)


@pytest.mark.parametrize("task", ["sr", "face"])
def test_a_network_that_does_nothing_fails_its_check(task):
    pairs, idle = validation(task), BicubicRestorer(SCALES[task])
    for network, metric, unit in (("l1", "psnr", " dB"), ("gan", "gradient_distance", "")):
        same = rf"{metric} ([\d.]+){unit}, interpolation has \1{unit}; expected to be better by [\d.]+, got 0\."
        with pytest.raises(UserError, match=f"network {network} for {task} does not restore: on 5 validation .*{same}"):
            check_network(network, idle, pairs, CheckConfig(), device=torch.device("cpu"))
    # Where nothing is asked for, nothing is refused.
    check_network("l1", idle, pairs, CheckConfig(l1_margin_db=0.0), device=torch.device("cpu"))


def test_the_check_is_the_mean_gain_over_all_pairs(monkeypatch):
    monkeypatch.setattr("data.pool.network_check.BATCH", 2)
    pairs = validation()
    gt, lq = (torch.stack([getattr(pairs[i], name) for i in range(5)]) for name in ("gt", "lq"))

    class Halfway:
        """Goes half of the way to the truth: the error halves, which is 20·log10(2) dB."""

        scale, seen = 4, 0

        def restore(self, some, *, sample_seeds):
            plain = torch.nn.functional.interpolate(some, scale_factor=4, mode="bicubic").clamp(0, 1)
            here = slice(self.seen, self.seen + len(some))
            self.seen += len(some)
            return (plain + gt[here]) / 2

    found = measure_network("l1", Halfway(), pairs, device=torch.device("cpu"))
    assert found.gain == pytest.approx(20 * math.log10(2), abs=1e-4)
    plain = torch.nn.functional.interpolate(lq, scale_factor=4, mode="bicubic").clamp(0, 1)
    by_hand = -10 * (plain - gt).square().mean((1, 2, 3)).log10().mean()
    assert found.interpolation == pytest.approx(float(by_hand), abs=1e-4)


def test_a_network_that_answers_no_numbers_does_not_pass():
    class Diverged:
        scale = 4

        def restore(self, some: torch.Tensor, *, sample_seeds: list[int]) -> torch.Tensor:
            return torch.full((len(some), 3, 4 * some.shape[-2], 4 * some.shape[-1]), torch.nan)

    pairs = pairs_for_task(SourceConfig(embedded_images=8), PairConfig(pairs=2), task="sr", split="train", seed=0)
    with pytest.raises(UserError, match="network gan for sr does not restore"):
        check_network("gan", Diverged(), pairs, CheckConfig(), device=torch.device("cpu"))


@pytest.mark.parametrize(("network", "margin"), [("l1", "l1_margin_db"), ("gan", "gan_margin")])
def test_a_training_whose_network_does_not_restore_fails_and_says_so(tmp_path, network, margin):
    words = [str(CONFIG), f"out={tmp_path}", *TINY]
    with pytest.raises(UserError, match=f"the pool's network {network} for sr does not restore") as refused:
        main([*words, f"check.{margin}=0.99"])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / network).exists()
    assert not (tmp_path / "summary.json").exists()
    main(words)  # the margins are free: asked for less, it goes on from its last state
    assert (tmp_path / network / "config.json").exists()


def test_critic_loss_by_hand():
    # relu(1 − 2) = 0 and relu(1 − 0.5) = 0.5, mean 0.25; relu(1 − 3) = 0 and relu(1 + 0.5) = 1.5, mean 0.75.
    assert critic_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])) == pytest.approx(1.0)


def test_critic_answers_per_patch():
    critic = Critic(4).eval()  # in training, every call refines the estimate of its norm
    picture = torch.rand(1, 3, 64, 64)
    changed = picture.clone()
    changed[..., :8, :8] = 0
    difference = (critic(picture) - critic(changed)).abs()[0, 0]
    assert difference.shape == (8, 8)
    assert difference[0, 0] > 0
    assert difference[-1, -1] == 0


def test_gradient_energy_counts_texture_not_its_place():
    stripes = torch.zeros(1, 3, 33, 33)
    stripes[..., ::2] = 1
    moved = stripes.roll(1, dims=-1)
    # Every horizontal step is 1, every vertical one 0.
    assert gradient_energy(stripes)[:, :3].min() == 1.0
    assert gradient_energy(stripes)[:, 3:].max() == 0.0
    torch.testing.assert_close(gradient_energy(moved[..., 1:]), gradient_energy(stripes[..., 1:]))


def test_learning_rate_falls_at_the_end_of_the_first_phase():
    config = load_config(data.train_pool.TrainPoolConfig, [str(CONFIG), "l1_iterations=30", "gan_iterations=5"])
    # A rise over 20, the peak until 10 of 30 are left, then linear to 1/10 at the last; then the GAN's own.
    peak = config.learning_rate
    factors = [learning_rate(config, i) / peak for i in (0, 9, 20, 25, 29)]
    assert factors == pytest.approx([0.05, 0.5, 1.0, 0.5, 0.1])
    # The GAN's own: at its peak until half of 5 are left, then linear: 2 of 2.5 left, and 1.
    factors = [learning_rate(config, 30 + i) / config.gan_learning_rate for i in (0, 2, 3, 4)]
    assert factors == pytest.approx([1.0, 1.0, 0.8, 0.4])


def test_exemplars_are_drawn_from_their_pairs_alone():
    config = PairConfig(crop_px=48, pairs=4)
    pairs = pairs_for_task(SourceConfig(embedded_images=6), config, task="face", split="train", seed=0)
    first, again = (gather_exemplars(pairs, blocks=64, seed=0) for _ in range(2))
    assert torch.equal(first.keys, again.keys)
    assert len(first.keys) == len(first.details) >= 48
    assert not torch.equal(first.keys, gather_exemplars(pairs, blocks=64, seed=1).keys)
