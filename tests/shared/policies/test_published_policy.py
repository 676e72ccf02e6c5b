"""A published pipeline of diffusers, in its own folder and without a word from here, is a policy to start from."""

from __future__ import annotations

import json

import pytest
import torch

from shared.app.errors import UserError
from shared.policies.load import load_policy
from tests.helpers.tiny_latent import save_tiny_latent


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return save_tiny_latent(folder / "model", tokenizer=True, pipeline="StableDiffusionControlNetPipeline")


def test_a_pipeline_serves_as_a_policy_with_its_settings(pipeline):
    lq, x_t = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 8, 8)
    outputs = []
    for settings in ({}, {"guidance": 3.0, "negative_prompt": "blurred"}):
        policy, spec = load_policy(pipeline, settings=settings)
        assert (policy.kind, spec.steps, spec.eta) == ("latent_controlnet", 50, 0.0)
        assert policy.origin().repository == str(pipeline)
        with torch.no_grad():
            outputs.append(policy.predict(x_t, torch.tensor([500]), policy.condition(lq)))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidence": 3.0}, "cannot serve as a latent_controlnet with these base_settings"),
        ({"guidance": -1.0}, "guidance"),
        ({"scale": "four"}, "cannot serve as a latent_controlnet"),
    ],
)
def test_wrong_settings_are_one_line(pipeline, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        load_policy(pipeline, settings=settings)
    assert "\n" not in str(caught.value)


def test_a_pipeline_that_restores_nothing_is_one_line(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline"}))
    with pytest.raises(
        UserError, match="is a StableVideoDiffusionPipeline, which cannot be tuned here; expected a Stable"
    ):
        load_policy(tmp_path)
