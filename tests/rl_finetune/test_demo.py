"""The demo: a picture uploaded in Chromium comes back before and after RL, scored; what is missing is one line."""

from __future__ import annotations

import importlib.util
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rl_finetune import demo
from rl_finetune.restoring.before_after import BeforeAfter
from shared.app.errors import UserError
from tests.helpers.browser import chromium, opened
from tests.helpers.tiny import save_tiny_policy, save_tiny_reward_model

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs the package gradio: it is the extra demo"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("demo")
    made = {name: str(save_tiny_policy(folder / name, "sr")) for name in ("before", "after")}
    return {**made, "reward_model": str(save_tiny_reward_model(folder / "reward_model"))}


@pytest.fixture(scope="module")
def policies(folders) -> BeforeAfter:
    config = demo.DemoConfig(
        policy=folders["after"], before=folders["before"], reward_model=folders["reward_model"], device="cpu"
    )
    return demo.open_policies(config)


def test_samples_are_those_that_restore_draws_and_the_best_is_the_reward_models(policies, folders):
    lq = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    heard = []
    found = policies.compare(lq, samples=3, seed=5, on_step=heard.append)
    assert heard == pytest.approx([k / 6 for k in range(1, 7)])
    assert found.after[0].picture.shape == (64, 96, 3)
    assert np.array_equal(found.after[0].picture, found.before[0].picture)  # one policy twice, with the same noise
    assert not np.array_equal(found.after[0].picture, found.after[1].picture)
    scores = [sample.score for sample in found.after]
    assert found.best(found.after) == scores.index(max(scores))
    rows = demo.score_rows(found)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [" *" in row[2] for row in rows] == [score == max(scores) for score in scores]


def test_where_a_tuned_policy_started_is_found_or_asked_for(tmp_path):
    assert demo.before_of("shipped:rl_face") == "shipped:base_face"
    (tmp_path / "config.yaml").write_text("base: runs/mine/base_sr\n")
    assert demo.before_of(str(tmp_path)) == "runs/mine/base_sr"
    with pytest.raises(UserError, match="name it with before="):
        demo.before_of("shipped:base_sr")


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'restore-rl\[demo\]'"):
        demo.main([])


@pytest.fixture(scope="module")
def page_url(policies):
    gradio = pytest.importorskip("gradio")
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind((demo.HOST, 0))
        port = free.getsockname()[1]
    app = demo.demo_app(gradio, policies, demo.DemoConfig(most_megapixels=0.01))
    demo.serve(app, gradio, port=port)
    with pytest.raises(OSError, match="port"):
        demo.serve(demo.demo_app(gradio, policies, demo.DemoConfig()), gradio, port=port)
    yield f"http://{demo.HOST}:{port}"
    app.close()


@needs_gradio
def test_an_uploaded_picture_is_restored_and_scored_and_nothing_leaves_the_machine(page_url, tmp_path):
    levels = np.full((24, 32, 4), 200, np.uint8)
    levels[:8, ..., 3] = 0
    Image.fromarray(levels).save(tmp_path / "with alpha.png")
    Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    with chromium() as browser, opened(browser, page_url, own=page_url, quiet=False) as page:
        page.get_by_role("button", name="Restore").click()
        page.get_by_text("Choose a picture first.").wait_for()
        upload = page.locator("input[type=file]").first
        upload.set_input_files(tmp_path / "with alpha.png")
        page.locator("img[src*='alpha']").first.wait_for()
        page.get_by_label("number input for Samples").fill("2")
        page.get_by_label("number input for Samples").press("Tab")
        page.get_by_role("button", name="Restore").click()
        said = page.get_by_label("What was done")
        page.wait_for_function("[...document.querySelectorAll('textarea')].some(e => e.value.includes('→'))")
        assert said.input_value() == "32×24 → 128×96"
        assert page.locator("table td").filter(has_text="*").count() >= 2
        assert page.locator("img").count() >= 5
        assert page.get_by_label("Share").count() == 0  # it would send the picture to a server
        page.get_by_label("Remove image").first.click()
        upload.set_input_files(tmp_path / "large.png")
        page.locator("img[src*='large']").first.wait_for()
        page.get_by_role("button", name="Restore").click()
        page.get_by_text("200×100 is more than 0.01 megapixels").wait_for()
