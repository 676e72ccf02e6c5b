"""The kernel distance of two sets, against torchmetrics' formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.image.kid import poly_mmd
from torchvision.models.vgg import cfgs, make_layers

from shared.app.errors import UserError
from shared.vision import distribution
from shared.vision.distribution import kernel_distance, load_describe


def drawn(count: int, seed: int, *, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_it_is_torchmetrics_and_zero_within_its_error_for_one_source():
    a, b = drawn(520, 0), drawn(520, 1, shift=0.3)
    apart = kernel_distance(a, b)
    assert apart.value == pytest.approx(poly_mmd(a.double(), b.double()).item(), rel=1e-6)
    assert apart.value > 5 * apart.standard_error
    values = [kernel_distance(drawn(500, 10 + i), drawn(500, 50 + i)) for i in range(20)]
    z = np.array([found.value / found.standard_error for found in values])
    assert abs(z.mean()) < 0.8
    assert 0.4 < z.std() < 2.0


def test_few_pictures_are_refused():
    with pytest.raises(UserError, match="needs 500 pictures and more on both sides, got 499 and 500"):
        kernel_distance(drawn(499, 0), drawn(500, 1))


def test_descriptions_are_vgg16s_last_features(tmp_path):
    layers = make_layers(cfgs["D"])
    save_file(
        {f"features.{name}": value for name, value in layers.state_dict().items()},
        tmp_path / "vgg16_features.safetensors",
    )
    pictures = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    scaled = (pictures - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    try:
        expected = layers[:30](scaled).mean((2, 3)).detach()
        torch.testing.assert_close(load_describe(weights=tmp_path)(pictures), expected, atol=1e-5, rtol=1e-4)
    finally:
        distribution._describe.cache_clear()
