"""Adapters in place of whole weights: they start as nothing, merge without a trace, and are all that is trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from rl_finetune import train as rl
from rl_finetune.evidence.gauge import GaugeReading
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.iteration import iterate
from rl_finetune.loop.lora_layers import LoraConfig
from rl_finetune.loop.trainable import checkpoint_gradients, make_trainable, trained_parameters
from rl_finetune.loop.weight_average import WeightAverage, Weights
from rl_finetune.methods.policy_loss import LossConfig
from shared.app.errors import UserError
from shared.diffusion.sampler import SamplerSpec
from shared.lora import merge_saved_adapters, save_adapters
from shared.policies.load import load_policy, load_restorer
from shared.policies.pixel_unet import PixelUNet, PixelUNetConfig
from shared.policies.policy_folder import read_provenance, save_policy
from shared.policies.policy_restorer import PolicyRestorer
from shared.vision.metrics import PairedDifference
from tests.helpers.tiny_rl import flat, killed_and_resumed, open_session, tiny_rl_config


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attentive_policy() -> PixelUNet:
    """Returns a policy with every kind of layer: convolutions with and without stride, linear layers, attention."""
    config = PixelUNetConfig(channels=(8, 16), norm_groups=4, attention_levels=(1,), head_channels=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = PixelUNet(config)
        torch.nn.init.normal_(policy.unet.conv_out.weight, std=0.05)
    return policy


def adapted_policy(*, alpha: float = 6.0) -> PixelUNet:
    """Returns it with adapters that have moved away from 0."""
    policy = attentive_policy()
    make_trainable(policy, "lora", LoraConfig(rank=3, alpha=alpha), seed=0)
    return move(policy)


def move(policy: PixelUNet) -> PixelUNet:
    with torch.no_grad():
        for i, parameter in enumerate(trained_parameters(policy).values()):
            parameter.add_(0.1 * randn(*parameter.shape, seed=i))
    return policy


X, LQ, T = (
    randn(2, 48, 8, 8),
    torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    torch.tensor([9, 700]),
)


def outputs(policy: PixelUNet) -> torch.Tensor:
    with torch.no_grad():
        return policy.predict(X, T, policy.condition(LQ))


def test_new_adapters_change_nothing_and_moved_ones_step_aside():
    base, policy = attentive_policy(), attentive_policy()
    make_trainable(policy, "lora", LoraConfig(rank=3), seed=0)
    assert torch.equal(outputs(policy), outputs(base))
    initial = Weights(policy)
    move(policy)
    moved = outputs(policy)
    assert (moved - outputs(base)).abs().max() > 1e-2
    with initial.put_in():
        torch.testing.assert_close(outputs(policy), outputs(base), atol=1e-6, rtol=0)
        assert not policy.training
    torch.testing.assert_close(outputs(policy), moved, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(initial.predict(X, T, policy.condition(LQ)), outputs(base), atol=1e-6, rtol=0)


def test_only_low_rank_adapters_are_trained():
    policy = attentive_policy()
    parameters = make_trainable(policy, "lora", LoraConfig(rank=3, targets=("*.conv_in", "*mid_block*.to_q")), seed=0)
    # conv_in: 96 → 8 channels, 3×3: A 3·96·9, B 8·3. to_q: 16 → 16: A 3·16, B 16·3.
    assert [p.numel() for p in parameters] == [3 * 96 * 9, 8 * 3, 3 * 16, 16 * 3]
    assert all(".lora_" in name for name in trained_parameters(policy))
    everything = attentive_policy()
    assert len(make_trainable(everything, "full", LoraConfig(), seed=0)) == len(list(everything.parameters()))


def test_adapters_begin_as_a_function_of_the_seed_alone():
    before = torch.random.get_rng_state()
    values = []
    for seed in (0, 0, 1):
        policy = attentive_policy()
        torch.rand(1)  # whatever was drawn from the global stream before
        make_trainable(policy, "lora", LoraConfig(), seed=seed)
        values.append(torch.cat([p.detach().flatten() for p in trained_parameters(policy).values()]))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    torch.random.set_rng_state(before)
    make_trainable(attentive_policy(), "lora", LoraConfig(), seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    # Variance 1/(3·fan-in) as torch's own layers: conv_in has fan-in 96·9, and 16·864 draws.
    first = trained_parameters(policy)["unet.conv_in.lora_A.default.weight"]
    assert float(first.detach().std()) == pytest.approx((3 * 96 * 9) ** -0.5, rel=0.03)


@pytest.mark.parametrize("alpha", [6.0, 1.5])
def test_merged_and_unmerged_outputs_are_equal(tmp_path, alpha):
    policy = adapted_policy(alpha=alpha)
    spec = SamplerSpec(steps=4, eta=0.5)
    save_policy(tmp_path, policy, spec, provenance={})
    whole, _ = load_policy(tmp_path)
    assert set(whole.state_dict()) == set(attentive_policy().state_dict())
    torch.testing.assert_close(outputs(whole), outputs(policy), atol=1e-5, rtol=1e-5)
    # W + alpha/rank · B·A, for the first convolution: A [3, 96, 3, 3], B [8, 3, 1, 1].
    a, b = (trained_parameters(policy)[f"unet.conv_in.lora_{letter}.default.weight"] for letter in "AB")
    moved = whole.unet.conv_in.weight - attentive_policy().unet.conv_in.weight
    torch.testing.assert_close(moved, alpha / 3 * torch.einsum("or,rikl->oikl", b[..., 0, 0], a), atol=1e-6, rtol=0)
    # What a user loads restores the same picture.
    expected = PolicyRestorer(policy, spec).restore(LQ, sample_seeds=[1, 2])
    torch.testing.assert_close(
        load_restorer(str(tmp_path)).restore(LQ, sample_seeds=[1, 2]), expected, atol=1e-5, rtol=0
    )


def test_adapters_are_saved_as_diffusers_reads_them(tmp_path):
    policy = adapted_policy(alpha=1.5)
    assert save_adapters(policy.parts(), tmp_path) == ["pytorch_lora_weights.safetensors"]
    assert save_adapters(attentive_policy().parts(), tmp_path / "none") == []
    ours = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    # alpha / rank, 1.5 / 3, is in B; A is as it was trained.
    b = trained_parameters(policy)["unet.conv_in.lora_B.default.weight"].detach()
    torch.testing.assert_close(ours["unet.conv_in.lora_B.weight"], 0.5 * b)
    plain = attentive_policy()
    merge_saved_adapters(plain.parts(), tmp_path)
    torch.testing.assert_close(outputs(plain), outputs(policy), atol=1e-5, rtol=1e-5)
    small = PixelUNet(PixelUNetConfig(channels=(8,), norm_groups=4))
    with pytest.raises(UserError, match="holds adapters of another network: unet"):
        merge_saved_adapters(small.parts(), tmp_path)


class WithVae(PixelUNet):
    """A policy with a part that no gradient reaches."""

    fixed = frozenset({"vae"})

    def parts(self):
        return {**super().parts(), "vae": self.vae}


@pytest.fixture
def with_vae() -> WithVae:
    policy = WithVae(PixelUNetConfig(channels=(8,), norm_groups=4))
    policy.vae = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    return policy


def test_what_no_gradient_reaches_is_never_trained(with_vae):
    make_trainable(with_vae, "full", LoraConfig(), seed=0)
    assert {name.partition(".")[0] for name in trained_parameters(with_vae)} == {"unet"}
    make_trainable(with_vae, "unet", LoraConfig(), seed=0)
    assert {name.partition(".")[0] for name in trained_parameters(with_vae)} == {"unet"}
    for wrong in ("vae", "controlnet"):
        with pytest.raises(UserError, match=rf"expected full, lora or a part \(unet\), got '{wrong}'"):
            make_trainable(with_vae, wrong, LoraConfig(), seed=0)
    with pytest.raises(
        UserError, match=r"'vae\.\*' matches layers of the vae alone, which no gradient reaches; name .*unet"
    ):
        make_trainable(with_vae, "lora", LoraConfig(targets=("vae.*",)), seed=0)
    make_trainable(with_vae, "lora", LoraConfig(rank=2), seed=0)
    assert {name.partition(".")[0] for name in trained_parameters(with_vae)} == {"unet"}


def test_a_part_can_compute_its_activations_again(with_vae):
    gradients = []
    for parts in ([], ["unet"]):
        make_trainable(with_vae, "full", LoraConfig(), seed=0)
        checkpoint_gradients(with_vae.train(), parts)
        with_vae.zero_grad()
        with_vae(X, T, with_vae.condition(LQ)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trained_parameters(with_vae).values()]))
    assert with_vae.unet.is_gradient_checkpointing
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-6)
    for part in ("vae", "controlnet"):
        with pytest.raises(UserError, match=f"recompute_parts: expected parts among unet, got '{part}'"):
            checkpoint_gradients(with_vae, [part])


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(UserError, match=r"'\*.to_qq' matches none of the policy's 51 .* end in conv_in, .*to_q, to_k"):
        make_trainable(attentive_policy(), "lora", LoraConfig(targets=("*.to_q", "*.to_qq")), seed=0)


def test_the_average_by_hand():
    layer = torch.nn.Linear(1, 1, bias=False)
    frozen_too = torch.nn.Sequential(layer, torch.nn.Linear(1, 1, bias=False).requires_grad_(False))
    average = WeightAverage(frozen_too, 0.9)
    for value in (1.0, 3.0, 2.0):
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update()
    # The first is a copy; then .9·1 + .1·3 = 1.2 and .9·1.2 + .1·2 = 1.28. The frozen layer is not followed.
    assert list(average.values) == ["0.weight"]
    assert average.values["0.weight"].item() == pytest.approx(1.28, abs=1e-6)
    again = WeightAverage(frozen_too, 0.9)
    again.load_state_dict(average.state_dict())
    again.update()
    assert again.values["0.weight"].item() == pytest.approx(0.9 * 1.28 + 0.1 * 2.0, abs=1e-6)


_NONE = PairedDifference(0.0, 0.0, 2)
HACKING = GaugeReading("hacking", _NONE, (), (), ("mean tile",), 1, None, 1.0)


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory) -> TrainRlConfig:
    config = tiny_rl_config(tmp_path_factory.mktemp("lora"))
    return dataclasses.replace(config, trainable="lora", lora=LoraConfig(rank=2), learning_rate=1e-2)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_rl_moves_the_adapters_and_nothing_else(lora_run, tmp_path, mixed_precision):
    session = open_session(lora_run, tmp_path, mixed_precision=mixed_precision)
    before = {name: p.detach().clone() for name, p in session.learner.policy.named_parameters()}
    iterate(session, 0)  # asserts that the first ratio is 1
    after = dict(session.learner.policy.named_parameters())
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == set(trained_parameters(session.learner.policy)) == set(session.average.values)
    figures = iterate(session, 1)
    assert torch.isfinite(torch.tensor(figures["loss"]))


def test_a_finished_lora_run_leaves_a_whole_policy(lora_run, tmp_path, capsys):
    session = open_session(lora_run, tmp_path)
    rl.train(session)
    trained = sum(p.numel() for p in trained_parameters(session.learner.policy).values())
    said = capsys.readouterr().out
    assert "policy gradient on 3 of 4 steps, 2 optimizer steps per rollout, 8 in all" in said
    total = sum(p.numel() for p in session.learner.policy.parameters())
    assert f"{trained:,} of {total:,} parameters trained" in said
    policy, spec = load_policy(tmp_path)
    assert spec == lora_run.sampler
    with session.average.put_in():
        torch.testing.assert_close(outputs(policy), outputs(session.learner.policy), atol=1e-5, rtol=1e-5)
    base, _ = load_policy(lora_run.base)
    assert not torch.equal(policy.unet.conv_in.weight, base.unet.conv_in.weight)


def test_a_lora_run_that_is_stopped_goes_back_to_its_last_good_policy(lora_run, tmp_path, monkeypatch):
    real = rl.check
    monkeypatch.setattr(rl, "check", lambda session, loop: real(session, loop) or loop.done == 2)
    config = dataclasses.replace(lora_run, check_every=1, check_images=2)
    session = open_session(config, tmp_path)
    monkeypatch.setattr(session.gauge, "read", lambda *_, **__: None if session.average.updates < 1 else HACKING)
    rl.train(session)
    # Only the policy before RL was called good, and it is what is left, evaluated and saved.
    base, _ = load_policy(lora_run.base)
    found, _ = load_policy(tmp_path)
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in found.state_dict().items())
    assert read_provenance(tmp_path)["iterations"] == 0
    assert session.average.updates == 2


def test_a_resumed_lora_run_ends_in_the_same_weights(lora_run, tmp_path, monkeypatch):
    killed_and_resumed(lora_run, tmp_path, monkeypatch)


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_the_reference_stays_the_base_policy(lora_run, tmp_path, trainable):
    config = dataclasses.replace(lora_run, trainable=trainable, loss=LossConfig(reference_kl=10.0))
    session = open_session(config, tmp_path / "with")
    iterate(session, 0)
    base, _ = load_policy(lora_run.base)
    condition = base.condition(LQ)
    with torch.no_grad():
        expected = base.predict(X, T, condition)
        assert torch.equal(session.learner.reference(X, T, condition), expected)
        assert not torch.equal(session.learner.policy.predict(X, T, condition), expected)
    # It pulls: the penalised policy stays nearer to where both began.
    free = open_session(dataclasses.replace(config, loss=LossConfig()), tmp_path / "without")
    assert free.learner.reference is None
    iterate(free, 0)
    start = flat(open_session(config, tmp_path / "start"))
    for i in range(1, 4):
        iterate(session, i)
        iterate(free, i)
    assert (flat(session) - start).norm() < (flat(free) - start).norm()
