"""The pages of docs/: they build without a warning, ask the network for nothing, and are read in both themes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.browser import chromium, contrasts, opened

ROOT = Path(__file__).parent.parent
AA = 4.5  # the least contrast of small text, WCAG AA


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    told = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=told, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_the_contents_name_pages_that_are_there():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = set(re.findall(r"[\w/]+\.md", str(nav)))
    assert {name for name in named if not (ROOT / "docs" / name).is_file()} == set()
    assert {f"{name}.md" for name in ("index", "guides", "equations", "decisions", "results")} <= named


def test_the_pages_ask_the_network_for_nothing(site):
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(https?:[^\"' >]+)", text)
        assert loaded == [], path
    assert "restore_levels" not in (site / "api" / "rl_finetune.html").read_text()
    assert "NoiseSchedule" in (site / "api" / "shared.html").read_text()
    assert "make restore" in (site / "index.html").read_text()
    assert "same_saturation" in (site / "guides.html").read_text()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_pages_are_read_in_both_themes_at_every_width(site, dark, width):
    with chromium() as browser:
        for name in ("index.html", "guides.html", "decisions.html", "api/shared.html"):
            with opened(browser, (site / name).as_uri(), width=width, dark=dark) as page:
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                poor = [
                    found for found in contrasts(page) if found[0] < AA and found[1] != "Skip to content"
                ]  # shown on focus
                assert poor == [], (name, poor[:5])
