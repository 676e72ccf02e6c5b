"""LPIPS and DISTS from a folder of features-only weights: torchmetrics' values, and what is said when weights are missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
import torchvision
from safetensors.torch import save_file
from torchmetrics.functional.image import dists as torchmetrics_dists
from torchmetrics.functional.image import lpips as torchmetrics_lpips
from torchvision.models.vgg import cfgs, make_layers

from shared.app.errors import UserError
from shared.vision import perceptual
from shared.vision.images import to_tensor
from shared.vision.perceptual import load_dists, load_lpips, lpips_weights_path

REAL_WEIGHTS = "RESTORE_RL_PERCEPTUAL"  # names a folder of real weights
DRAW = torch.Generator().manual_seed(0)
GT = torch.rand(2, 3, 64, 64, generator=DRAW)
SR = (GT + 0.1 * torch.randn(2, 3, 64, 64, generator=DRAW)).clamp(0.01, 0.99)


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    yield
    perceptual._lpips.cache_clear()
    perceptual._dists.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Random AlexNet and VGG16 features in the layout that is read."""
    path = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {"alexnet": torchvision.models.alexnet().features, "vgg16": make_layers(cfgs["D"])}
    for name, layers in networks.items():
        for value in layers.state_dict().values():
            # √(2 / fan-in): PyTorch's own start dies out over thirteen layers, and zero biases could be mixed up unseen.
            value.normal_(std=(2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.05, generator=DRAW)
        state = {f"features.{key}": value for key, value in layers.state_dict().items()}
        save_file(state, path / f"{name}_features.safetensors")
    return path


def noisier(x: torch.Tensor, std: float) -> torch.Tensor:
    return (x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_from_a_folder_is_torchmetrics(net, folder):
    layers = torchvision.models.alexnet().features if net == "alex" else make_layers(cfgs["D"])
    stored = perceptual.read_weights(folder / f"{'alexnet' if net == 'alex' else 'vgg16'}_features.safetensors")
    layers.load_state_dict({name.removeprefix("features."): value for name, value in stored.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained: layers)
        expected = torchmetrics_lpips.learned_perceptual_image_patch_similarity(
            SR, GT, net_type=net, reduction="none", normalize=True
        )
    lpips = load_lpips(net, weights=folder)
    torch.testing.assert_close(lpips(SR, GT), expected, atol=1e-6, rtol=1e-5)
    assert expected.min().item() > 1e-3
    assert lpips(SR[:1], GT[:1]).shape == (1,)


def test_dists_from_a_folder_is_torchmetrics(folder, monkeypatch):
    class Vgg:
        features = make_layers(cfgs["D"])

    stored = perceptual.read_weights(folder / "vgg16_features.safetensors")
    Vgg.features.load_state_dict({name.removeprefix("features."): value for name, value in stored.items()})
    monkeypatch.setattr(torchmetrics_dists, "vgg16", lambda weights: Vgg)
    expected = torchmetrics_dists.deep_image_structure_and_texture_similarity(SR, GT)
    dists = load_dists(weights=folder)
    torch.testing.assert_close(dists(SR, GT), expected, atol=1e-6, rtol=1e-5)
    assert expected.min().item() > 1e-3
    assert dists(SR[:1], GT[:1]).shape == (1,)


def test_both_are_differentiable_in_the_restoration_and_nothing_of_theirs_is_trained(folder):
    for distance in (load_lpips("alex", weights=folder), load_dists(weights=folder)):
        sr = SR.clone().requires_grad_()
        gradient = torch.autograd.grad(distance(sr, GT).sum(), sr)[0]
        assert torch.isfinite(gradient).all()
        # Of all of it: the slope along the gradient is the gradient's length.
        step = 0.02 * gradient / gradient.norm()
        slope = (distance(SR + step, GT) - distance(SR - step, GT)).sum().item() / 0.04
        assert slope == pytest.approx(gradient.norm().item(), rel=0.1)
        assert (distance(noisier(GT, 0.2), GT) > distance(noisier(GT, 0.02), GT)).all()
        assert distance(GT, GT).abs().max().item() < 1e-5


def test_loading_draws_no_random_numbers(folder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_lpips("vgg", weights=folder)
    load_dists(weights=folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_heads_in_the_folder_take_the_place_of_torchmetrics(folder, tmp_path):
    for name in ("alexnet_features.safetensors", "vgg16_features.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    heads = perceptual.read_weights(Path(torchmetrics_lpips.__file__).parent / "lpips_models" / "alex.pth")
    save_file({name: 2.0 * value for name, value in heads.items()}, tmp_path / "lpips_alex.safetensors")
    shares = perceptual.read_weights(torchmetrics_dists._PATH_WEIGHT_DISTS)
    # Structure and texture change places: another distance, of the same total weight.
    save_file({"alpha": shares["beta"].clone(), "beta": shares["alpha"].clone()}, tmp_path / "dists.safetensors")
    torch.testing.assert_close(
        load_lpips("alex", weights=tmp_path)(SR, GT), 2.0 * load_lpips("alex", weights=folder)(SR, GT)
    )
    change = load_dists(weights=tmp_path)(SR, GT) - load_dists(weights=folder)(SR, GT)
    assert change.abs().min().item() > 1e-4


def test_without_weights_it_says_where_they_should_be(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"LPIPS .*vgg backbone at .*vgg16-397923af\.pth; allow the download"):
        load_lpips("vgg")
    with pytest.raises(UserError, match=r"DISTS needs .*vgg16-397923af\.pth; allow the download"):
        load_dists()
    with pytest.raises(UserError, match="expected one of vgg, alex, squeeze"):
        load_lpips("resnet")
    with pytest.raises(UserError, match=r"LPIPS .*alexnet_features\.safetensors; put the file there"):
        load_lpips("alex", weights=tmp_path, allow_download=True)


def test_another_networks_weights_are_refused_in_one_line(folder, tmp_path):
    path = tmp_path / "alexnet_features.safetensors"
    path.symlink_to(folder / "vgg16_features.safetensors")
    with pytest.raises(UserError, match=r"alexnet_features.*it has no features\.3\.bias"):
        load_lpips("alex", weights=tmp_path)
    path.unlink()
    wrong = {name: value[..., :1] for name, value in perceptual.read_weights(folder / path.name).items()}
    save_file({name: value.contiguous() for name, value in wrong.items()}, path)
    with pytest.raises(UserError, match="they do not fit") as error:
        load_lpips("alex", weights=tmp_path)
    assert "\n" not in str(error.value)
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="they do not load"):
        load_lpips("alex", weights=tmp_path)


def test_a_download_is_announced_before_it_starts_and_a_failed_one_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = []

    def no_network(*_, **__):
        said.append(capsys.readouterr().out)
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    with pytest.raises(UserError, match=r"LPIPS: https://.* could not be fetched .*no route to host.*; put the file"):
        load_lpips("alex", allow_download=True)
    assert said[0].startswith("LPIPS: fetching 233 MB of weights from https://download.pytorch.org/")


def test_torchvisions_own_file_on_disk_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = lpips_weights_path("squeeze")
    path.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    lpips = load_lpips("squeeze")
    assert lpips(GT, GT).tolist() == [0.0, 0.0]
    assert (lpips(noisier(GT, 0.2), GT) > lpips(noisier(GT, 0.02), GT)).all()


@pytest.mark.skipif(REAL_WEIGHTS not in os.environ, reason=f"{REAL_WEIGHTS} names no folder of real weights")
def test_real_weights_give_the_packages_own_values():
    gt = skimage.data.astronaut()[64:192, 160:288].astype(np.float32) / 255
    sr = scipy.ndimage.gaussian_filter(gt, (1.5, 1.5, 0))
    pair = to_tensor(sr)[None], to_tensor(gt)[None]
    weights = os.environ[REAL_WEIGHTS]
    # What lpips 0.1.4 and DISTS-pytorch 0.1 say of this pair.
    assert load_lpips("alex", weights=weights)(*pair).item() == pytest.approx(0.300772, abs=2e-5)
    assert load_lpips("vgg", weights=weights)(*pair).item() == pytest.approx(0.199747, abs=2e-5)
    assert load_dists(weights=weights)(*pair).item() == pytest.approx(0.203927, abs=2e-5)
