"""Several maps at once: each is normalised on its own, then weighed; stages without one leave it out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from rl_finetune.credit.cells import spatial_advantages
from rl_finetune.credit.config import AdvantageConfig
from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import draw
from rl_finetune.loop.session import Session
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.rewards import registry as registered
from rl_finetune.rewards.config import RewardConfig, RewardPart
from rl_finetune.rewards.curriculum import CurriculumConfig
from rl_finetune.rewards.judge import Judgement
from tests.helpers.tiny_rl import credit as credit_in
from tests.helpers.tiny_rl import judge, open_session, tiny_rl_config

ADVANTAGE = AdvantageConfig(credit="spatial", spatial_weight=1.0, noise_level_weights=False)
MAPS = [RewardPart("fgr_map", 3.0), RewardPart("absolute_error", 1.0)]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> TrainRlConfig:
    config = tiny_rl_config(tmp_path_factory.mktemp("assign"))
    return dataclasses.replace(config, advantage=ADVANTAGE, reward=dataclasses.replace(config.reward, maps=MAPS))


def judged(config: TrainRlConfig, folder: Path) -> tuple[Session, Rollout, Judgement]:
    """Returns a session, its first rollout, and what its rewards say of that."""
    session = open_session(config, folder)
    drawn = draw(session, 0)
    return session, drawn, judge(session, drawn)


def test_maps_are_normalised_and_then_weighed(tiny_run, tmp_path):
    session, drawn, judgement = judged(tiny_run, tmp_path)
    found = credit_in(session, drawn, judgement, ADVANTAGE).advantages
    own = {}
    for name, maps in judgement.maps.items():
        own[name] = spatial_advantages(maps[:, :, -1], radius=ADVANTAGE.radius, std="pooled", clip=math.inf).values
        assert own[name].square().mean().sqrt() == pytest.approx(1.0, rel=1e-5)
    expected = 0.75 * own["fgr_map"] + 0.25 * own["absolute_error"]
    expected = (expected / expected.square().mean().sqrt()).clamp(-ADVANTAGE.cell_clip, ADVANTAGE.cell_clip)
    torch.testing.assert_close(found[:, :, 0], expected)
    torch.testing.assert_close(found[:, :, -1], expected)


def test_sum_first_weighs_the_maps_as_they_are(tiny_run, tmp_path):
    session, drawn, judgement = judged(tiny_run, tmp_path)
    summed = dataclasses.replace(judgement, map_order="sum_first")
    found = credit_in(session, drawn, summed, ADVANTAGE).advantages
    # 3·a + b, the config's weights, whatever scale a and b have; then one normalisation.
    whole = 3.0 * judgement.maps["fgr_map"] + judgement.maps["absolute_error"]
    expected = spatial_advantages(whole[:, :, -1], radius=ADVANTAGE.radius, std="pooled", clip=math.inf).values.clamp(
        -ADVANTAGE.cell_clip, ADVANTAGE.cell_clip
    )
    torch.testing.assert_close(found[:, :, 0], expected, atol=1e-4, rtol=1e-4)


def test_a_map_on_another_scale_has_no_more_say(tiny_run, tmp_path):
    session, drawn, judgement = judged(tiny_run, tmp_path)
    scaled = dataclasses.replace(
        judgement, maps={**judgement.maps, "absolute_error": 100.0 * judgement.maps["absolute_error"]}
    )
    first, second = (credit_in(session, drawn, j, ADVANTAGE).advantages for j in (judgement, scaled))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def test_stage_0_leaves_its_own_map_out_and_keeps_the_others(tiny_run, tmp_path):
    config = dataclasses.replace(tiny_run, curriculum=CurriculumConfig(stages=[0, 1], budget_iterations=5))
    session = open_session(config, tmp_path)
    judgement = judge(session, draw(session, 0))
    assert list(judgement.maps) == ["absolute_error"]


def test_an_absent_maps_share_of_the_credit_is_the_pictures(tiny_run, tmp_path):
    session, drawn, judgement = judged(tiny_run, tmp_path)
    alone = dataclasses.replace(
        judgement, maps={"absolute_error": judgement.maps["absolute_error"]}, map_weights={"absolute_error": 1.0}
    )

    def credit(j, spatial_weight: float) -> torch.Tensor:
        return credit_in(session, drawn, j, dataclasses.replace(ADVANTAGE, spatial_weight=spatial_weight)).advantages

    # Of the maps' weights 3 and 1 a quarter is there: of credit 1 in space, .25 is its own and .75 the picture's.
    only_map = dataclasses.replace(alone, map_weight_total=1.0)
    expected = 0.75 * credit(only_map, 0.0) + 0.25 * credit(only_map, 1.0)
    torch.testing.assert_close(credit(alone, 1.0), expected)


def test_every_part_of_every_stage_gets_unit_spread_before_it_is_weighed(tiny_run, tmp_path):
    curriculum = CurriculumConfig(stages=[0, 1], budget_iterations=5, ramp_iterations=3)
    session = open_session(dataclasses.replace(tiny_run, curriculum=curriculum), tmp_path)
    session.curriculum = dataclasses.replace(session.curriculum, ramp=1)  # a quarter of the way
    judgement = judge(session, draw(session, 0))
    # RM_0 has the score alone, weight 1 of 1; RM_1 score and map at a half each.
    assert judgement.weights == {
        "fgr_score@0": pytest.approx(0.75),
        "fgr_score@1": pytest.approx(0.125),
        "fgr_worst_spot@1": pytest.approx(0.125),
    }


def test_a_map_enters_a_ramp_by_its_share(tiny_run, tmp_path):
    curriculum = CurriculumConfig(stages=[0, 1], budget_iterations=5, ramp_iterations=3)
    session = open_session(dataclasses.replace(tiny_run, curriculum=curriculum), tmp_path)
    drawn, weights = draw(session, 0), []
    for ramp in (0, 1, 3):
        session.curriculum = dataclasses.replace(session.curriculum, ramp=ramp)
        judgement = judge(session, drawn)
        assert judgement.map_weight_total == 4.0
        weights.append(dict(judgement.map_weights))
    # RM_0 has no map. On the ramp RM_1's counts as much as RM_1 does: a quarter of its 3, then three quarters.
    assert weights == [
        {"absolute_error": 1.0},
        {"fgr_map": pytest.approx(0.75), "absolute_error": 1.0},
        {"fgr_map": pytest.approx(2.25), "absolute_error": 1.0},
    ]


def test_sums_of_two_stages_are_normalised_before_they_are_blended(tiny_run, tmp_path):
    curriculum = CurriculumConfig(stages=[0, 1], budget_iterations=5, ramp_iterations=3)
    summed = dataclasses.replace(tiny_run.reward, order="sum_first")
    session = open_session(dataclasses.replace(tiny_run, curriculum=curriculum, reward=summed), tmp_path)
    drawn = draw(session, 0)
    judgement = judge(session, drawn)
    assert judgement.weights == {"fgr_score@0": 1.0}
    assert judgement.order == "sum_first"
    session.curriculum = dataclasses.replace(session.curriculum, ramp=1)
    judgement = judge(session, drawn)
    assert judgement.weights == {"stage 0": pytest.approx(0.75), "stage 1": pytest.approx(0.25)}
    assert judgement.order == "normalise_first"
    # A stage on a wider scale has no more say.
    wider = dataclasses.replace(judgement, rewards={**judgement.rewards, "stage 1": 50 * judgement.rewards["stage 1"]})
    scalar = dataclasses.replace(ADVANTAGE, credit="scalar")
    first, second = (credit_in(session, drawn, j, scalar).advantages for j in (judgement, wider))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def test_what_does_not_depend_on_the_stage_is_computed_once_on_a_ramp(tiny_run, tmp_path, monkeypatch):
    parts = [RewardPart("fgr_score", 0.5), RewardPart("psnr", 0.5)]
    config = dataclasses.replace(
        tiny_run,
        reward=dataclasses.replace(tiny_run.reward, parts=parts),
        curriculum=CurriculumConfig(stages=[0, 1], budget_iterations=5, ramp_iterations=3),
    )
    calls = {"psnr": 0, "absolute_error": 0}
    for name in calls:
        count_calls(monkeypatch, name, calls)
    session = open_session(config, tmp_path)
    session.curriculum = dataclasses.replace(session.curriculum, ramp=1)
    drawn = draw(session, 0)
    calls.update(psnr=0, absolute_error=0)
    judgement = judge(session, drawn)
    assert calls == {"psnr": 1, "absolute_error": 1}  # twelve pictures, one batch
    assert torch.equal(judgement.rewards["psnr@0"], judgement.rewards["psnr@1"])


def count_calls(monkeypatch, name: str, calls: dict[str, int]) -> None:
    """Counts in `calls` how often the reward or map `name` is evaluated."""
    for registry in (registered._REWARDS, registered._MAPS):
        if name in registry:
            entry = registry[name]

            def counted(*pictures, entry=entry, **tools):
                calls[name] += 1
                return entry.function(*pictures, **tools)

            monkeypatch.setitem(registry, name, dataclasses.replace(entry, function=counted))


@pytest.mark.parametrize("maps", [[RewardPart("fgr_map", 0.0)], [RewardPart("fgr_map", 1.0)] * 2])
def test_maps_without_weight_or_named_twice_are_refused(maps):
    with pytest.raises(ValueError, match=r"reward\.maps"):
        RewardConfig(maps=maps)
