"""S_base by name: RM_0's own score, and CLIP-IQA from a folder or, over real HTTP, from a Hub."""

from __future__ import annotations

import sys

import pytest
import torch

from reward_model.learning.anchor import open_anchor
from reward_model.learning.losses import align_loss
from reward_model.network.model import RewardModel, RewardModelConfig
from shared.app.errors import UserError
from shared.runs.tracking import read_metrics
from tests.helpers.hub_server import FakeHub, folder_files, point_client_at, use_hub
from tests.helpers.reward_training import run_training
from tests.helpers.tiny_clip import save_tiny_clip

CPU, NAME = torch.device("cpu"), "openai/clip-vit-base-patch16"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def hub(tmp_path, monkeypatch, clip):
    with FakeHub() as server:
        use_hub(server, monkeypatch, cache=tmp_path / "cache")
        server.add(NAME, folder_files(clip))
        yield server


def test_clip_iqa_from_the_hub_is_clips_own_answer(hub, clip):
    from transformers import CLIPModel, CLIPTokenizerFast

    score = open_anchor(f"clip_iqa:{NAME}", first_stage=None, device=CPU)
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # the network's own size
    tokens = CLIPTokenizerFast.from_pretrained(clip)(["Good photo.", "Bad photo."], padding=True, return_tensors="pt")
    # OpenAI's own normalisation of pictures in [0, 1], and CLIP's temperature of 1/100.
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    normalised = (pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        out = CLIPModel.from_pretrained(clip).eval()(**tokens, pixel_values=normalised)
    expected = (100 * out.image_embeds @ out.text_embeds.T).softmax(1)[:, 0]
    found = score(pictures)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.std() > 1e-3
    assert score(pictures[:1]).shape == (1,)
    assert score(torch.rand(2, 3, 50, 90)).shape == (2,)


def test_the_anchor_has_no_gradient_and_passes_one_on(clip):
    score = open_anchor(f"clip_iqa:{clip}", first_stage=None, device=CPU)
    pictures, own = torch.rand(2, 3, 32, 32), torch.zeros(2, requires_grad=True)
    anchor = score(pictures.requires_grad_())
    assert not anchor.requires_grad
    align_loss(own, anchor).backward()
    assert own.grad.abs().sum() > 0


def test_a_reward_model_trains_on_it(clip, tmp_path):
    run = run_training(tmp_path / "run", anchor=f"clip_iqa:{clip}", stage_iterations=(1, 2, 1))
    terms = [record for record in read_metrics(run.path) if "stage_1/align" in record]
    assert len(terms) == 2
    assert all(0 < record["stage_1/align"] < 10 for record in terms)


def test_rm_0_as_its_own_anchor():
    model = RewardModel(RewardModelConfig(decoder_channels=(8,)), stage=0)
    score = open_anchor("embedded", first_stage=model, device=CPU)
    pictures = torch.rand(2, 3, 32, 32)
    assert torch.equal(score(pictures), model(pictures).score)
    assert not score(pictures).requires_grad
    with pytest.raises(UserError, match="give stage 0 some iterations, or name clip_iqa"):
        open_anchor("embedded", first_stage=None, device=CPU)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip_iqa:openai/clip-none", "CLIP network openai/clip-none .*take anchor=embedded"),
        ("niqe", "expected anchor to be embedded or clip_iqa:<model>, got 'niqe'"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub, name, said):
    with pytest.raises(UserError, match=said) as caught:
        open_anchor(name, first_stage=None, device=CPU)
    assert "\n" not in str(caught.value)


def test_no_network_and_no_transformers_are_one_line(hub, monkeypatch):
    point_client_at("http://127.0.0.1:9", monkeypatch)  # where no server listens
    with pytest.raises(UserError, match=f"CLIP network {NAME} .*take anchor=embedded") as caught:
        open_anchor("clip_iqa", first_stage=None, device=CPU)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs transformers; install the extra"):
        open_anchor("clip_iqa", first_stage=None, device=CPU)
