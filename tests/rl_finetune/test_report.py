"""The report: what it says of whole, partial and old runs; and in Chromium: slider, overlay, order, themes, a phone."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from rl_finetune import report, train
from shared.app.config import to_yaml
from shared.app.errors import UserError
from tests.helpers.browser import chromium, contrasts, opened
from tests.helpers.tiny_rl import tiny_rl_config

AA = 4.5  # the least contrast of small text, WCAG AA


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of one task: four iterations, checks, pictures and the curve, from a base and a reward model elsewhere."""
    folder = tmp_path_factory.mktemp("report")
    config = dataclasses.replace(
        tiny_rl_config(folder / "parts"),
        out=str(folder / "run" / "rl_face"),
        check_every=2,
        check_images=2,
        curve_images=2,
    )
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    train.main([str(path)])
    report.main([str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="module")
def page(run) -> str:
    return (run / "report.html").read_text()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def test_the_page_is_one_file_that_forbids_itself_every_request(page):
    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:src|href)="([^"]{0,5})', page)) <= {"data:", "#shor", "#rl_f", "#run"}
    assert "http://" not in page
    assert "https://" not in page


def test_it_says_what_was_run_and_what_came_of_it(run, page):
    summary = json.loads((run / "rl_face" / "summary.json").read_text())
    assert summary["curve"]["line"].split(";")[0].replace("'", "&#39;") in page
    assert f"torch {torch.__version__.partition('+')[0]}" in page
    assert "seed: 0" in page
    assert "RM_3: iterations 1 to 4" in page
    for of in summary["families"]:
        assert f'<th scope="row">{of["family"]}</th><td>{of["metric"]}</td>' in page
    for name in ("reward by iteration", "psnr on validation pictures by iteration", "psnr against gradient_distance"):
        assert f'alt="{name}' in page
    assert page.count('class="layer before"') == page.count('class="layer map_after"') == 4


def test_the_pictures_on_which_rl_lost_most_come_first(run):
    found = json.loads((run / "rl_face" / "evaluation.json").read_text())
    name, order = found["gallery"]["ranked_by"], found["gallery"]["indices"]
    assert name == "gradient_distance"  # lower is better
    losses = [found["after"][name][i] - found["before"][name][i] for i in order]
    assert losses == sorted(losses, reverse=True)


def test_an_unfinished_run_says_what_is_missing(run, tmp_path):
    run = copied(run, tmp_path / "run")
    for name in ("summary.json", "evaluation.json"):
        (run / "rl_face" / name).unlink()
    report.main([f"run={run}"])
    page = (run / "report.html").read_text()
    assert "RL, faces: not finished: 4 of 4 steps so far" in page
    assert "RL, ×4 super-resolution: not begun" in page
    assert 'alt="reward by iteration' in page
    (run / "rl_face" / "metrics.jsonl").unlink()
    report.main([f"run={run}"])
    assert "RL, faces: begun, not finished" in (run / "report.html").read_text()


def test_a_run_of_an_earlier_version_shows_what_it_has(run, tmp_path):
    run = copied(run, tmp_path / "run")
    shutil.rmtree(run / "rl_face" / "held_out")
    for name in ("curve.json", "provenance.json"):
        (run / "rl_face" / name).unlink()
    path = run / "rl_face" / "summary.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("families", "peak_memory_mb", "gone")}
    path.write_text(json.dumps(old))
    report.main([f"run={run}"])
    page = (run / "report.html").read_text()
    assert "An earlier version evaluated this run" in page
    assert page.count("data:image/png") == 2  # the grid of pictures, and curve.png
    assert "did not note commit, versions and machine" in page
    assert old["gauge"] in page


def test_what_ships_is_named_and_what_it_spares_too(run, tmp_path, capsys):
    run = copied(run, tmp_path / "run")
    path = run / "rl_face" / "config.yaml"
    text = re.sub(r"^base: .*$", "base: shipped:base_face", path.read_text(), flags=re.MULTILINE)
    path.write_text(re.sub(r"^reward_model: .*$", "reward_model: shipped:reward_model", text, flags=re.MULTILINE))
    report.main([f"run={run}", "dataset=nowhere"])
    printed = capsys.readouterr().out
    assert "shipped:base_face, as it ships" in printed
    assert "shipped:reward_model, as it ships" in printed
    assert "not needed: the reward model was not trained here" in printed


def test_a_folder_without_a_stage_is_refused(tmp_path):
    with pytest.raises(UserError, match="no stage is begun"):
        report.main([f"run={tmp_path}"])
    with pytest.raises(UserError, match="is missing; make one with"):
        report.main([f"run={tmp_path / 'nothing'}"])


def test_the_slider_moves_by_mouse_and_by_keyboard(run, browser):
    with opened(browser, (run / "report.html").as_uri()) as page:
        frame = page.locator(".frame").first
        slider = frame.locator("input")
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
        page.mouse.up()
        at = float(slider.input_value())
        assert at == pytest.approx(25, abs=2)
        assert frame.evaluate("e => e.style.getPropertyValue('--at')") == f"{at:g}%"
        clip = frame.locator(".layer.after").evaluate("e => getComputedStyle(e).clipPath")
        assert clip == f"inset(0px 0px 0px {at:g}%)"
        slider.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert float(slider.input_value()) == at + 3
        assert "before RL, the rest after RL" in slider.get_attribute("aria-valuetext")
        assert frame.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"  # who uses the keyboard sees where


def test_the_map_switches_and_the_sides_too(run, browser):
    with opened(browser, (run / "report.html").as_uri()) as page:
        frame = page.locator(".frame").first

        def shown() -> set[str]:
            return {
                kind
                for kind in ("lq", "before", "after", "gt", "map_before", "map_after")
                if frame.locator(f".layer.{kind}").evaluate("e => getComputedStyle(e).display") == "block"
            }

        assert shown() == {"before", "after"}
        page.get_by_label("Show where the reward model sees defects").check()
        assert shown() == {"before", "after", "map_before", "map_after"}
        assert page.get_by_text("Painted orange to red").is_visible()
        page.locator("select.left").select_option("truth")
        assert shown() == {"gt", "after", "map_after"}
        assert frame.locator(".tag-left").text_content() == "truth"
        page.get_by_label("Show where the reward model sees defects").uncheck()
        assert shown() == {"gt", "after"}


def test_pictures_are_sorted_by_any_measure_either_way(run, browser):
    found = json.loads((run / "rl_face" / "evaluation.json").read_text())
    gains = [after - before for before, after in zip(found["before"]["psnr"], found["after"]["psnr"], strict=True)]
    with opened(browser, (run / "report.html").as_uri()) as page:
        page.get_by_label("Sort by").select_option("psnr")
        page.get_by_label("Order").select_option("gained most first")
        order = [int(text.split()[1]) for text in page.locator(".pairs b").all_text_contents()]
    assert [gains[i] for i in order] == sorted(gains, reverse=True)


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_in_both_themes(run, browser, dark):
    with opened(browser, (run / "report.html").as_uri(), dark=dark) as page:
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(18, 22, 27)" if dark else "rgb(245, 246, 248)"
        )
        for details in page.locator("details").all():
            details.evaluate("e => e.open = true")
        found = contrasts(page)
        assert len(found) > 100
        assert found[0][0] >= AA, found[:3]
        switch = page.get_by_role("button", name="Theme")
        for _ in range(1 if dark else 2):  # as the system → light → dark
            switch.click()
        assert page.locator(".plot img").first.is_visible() is dark  # the light figure shows in the light theme
        other = contrasts(page)
        assert other[0][0] >= AA, other[:3]


def test_it_fits_a_phone_and_every_control_has_a_name(run, browser):
    with opened(browser, (run / "report.html").as_uri(), width=390) as page:
        for details in page.locator("details").all():
            details.evaluate("e => e.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        unnamed = "e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())"
        for control in page.locator("button, select, input, [tabindex]").all():
            assert control.evaluate(unnamed) is False
        assert page.locator("img:not([alt])").count() == 0
