"""Whether faces stay who they are: measured where a recogniser is given, and named as missing where it is not."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from rl_finetune import train as rl
from rl_finetune.evidence.held_out import IDENTITY
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.reporting.report_page import report_html
from rl_finetune.reporting.run_facts import read_stages
from rl_finetune.rewards.config import RewardConfig, RewardPart
from rl_finetune.rewards.face_network import MobileFaceNet
from rl_finetune.rewards.faces import crop_face
from shared.app.errors import UserError
from tests.helpers.tiny_rl import open_session, tiny_rl_config


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    return tiny_rl_config(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory) -> tuple[str, MobileFaceNet]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MobileFaceNet().eval()
    path = tmp_path_factory.mktemp("face") / "face.ckpt"
    torch.save({"net_state_dict": network.state_dict()}, path)
    return str(path), network


def test_it_is_measured_before_and_after_and_read_by_the_gauge(tiny_run, tmp_path, recogniser):
    path, network = recogniser
    config = dataclasses.replace(
        tiny_run, identity_weights=path, iterations=1, check_every=1, check_images=2, learning_rate=1e-2
    )
    session = open_session(config, tmp_path)
    assert IDENTITY in session.gauge.measured
    rl.train(session)
    assert len(session.gauge.baseline[IDENTITY]) == 2
    summary = rl.compare_with_base(session)
    (row,) = [row for row in summary["rows"] if row["name"] == IDENTITY]
    assert row["arrow"] == "↑"
    assert IDENTITY not in summary["absent"]
    # The same number, worked out here: the cosine between what the recogniser makes of sr and of gt.
    sr, gt = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    measured = {name: v for measure in session.panel.measures for name, v in measure(sr, gt, gt).items()}
    with torch.no_grad():
        ours, theirs = (network(crop_face(x, width=96) * 2 - 1) for x in (sr, gt))
    torch.testing.assert_close(measured[IDENTITY], F.cosine_similarity(ours, theirs), atol=1e-5, rtol=0)


def test_without_a_recogniser_the_run_and_its_report_say_so(tiny_run, tmp_path, capsys):
    config = dataclasses.replace(tiny_run, iterations=1)
    session = open_session(config, tmp_path / "rl_face")
    rl.train(session)
    assert "identity_check is not measured: identity_weights names no face recogniser" in capsys.readouterr().out
    summary = rl.compare_with_base(session)
    assert IDENTITY not in {row["name"] for row in summary["rows"]}
    (tmp_path / "rl_face" / "summary.json").write_text(json.dumps(summary))
    html = report_html(tmp_path, read_stages(tmp_path, dataset=None))
    assert "<code>identity_check</code> was not measured: identity_weights names no face recogniser." in html


def test_a_rewards_own_recogniser_is_no_check(tiny_run, tmp_path, recogniser):
    tools = dataclasses.replace(tiny_run.reward.tools, identity_model=recogniser[0])
    reward = RewardConfig(parts=[RewardPart("identity", 1.0)], tools=tools)
    session = open_session(dataclasses.replace(tiny_run, reward=reward), tmp_path)
    assert IDENTITY not in session.gauge.measured
    assert IDENTITY in session.panel.absent


def test_what_is_no_recogniser_stops_before_anything_is_trained(tiny_run, tmp_path):
    (tmp_path / "face.ckpt").write_bytes(b"nothing")
    for name, message in ((str(tmp_path / "face.ckpt"), "expected MobileFaceNet's weights"), ("no.ckpt", "no.ckpt")):
        with pytest.raises(UserError, match=message) as error:
            open_session(dataclasses.replace(tiny_run, identity_weights=name), tmp_path / "run")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="identity_weights is for task face"):
        dataclasses.replace(tiny_run, task="sr", identity_weights="face.ckpt")
