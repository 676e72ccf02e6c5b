"""A headless Chromium for the pages that people open; tests skip, saying why, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """Yields a playwright browser. Skips the test where the package or the browser is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright: it is in the extra dev")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(NAMES)} is on the path")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, url: str, *, width: int = 1280, dark: bool = False, own: str = "file:", quiet: bool = True
) -> Iterator[Any]:
    """Yields a page; fails for every request that goes elsewhere than `own`, for an error on the page, and, where it is
    to be `quiet`, for whatever its console says.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page, said, asked = context.new_page(), [], []
    page.on(
        "console", lambda message: said.append(message.text) if quiet and message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    yield page
    context.close()
    assert said == []
    assert [there for there in asked if not there.startswith((own, "data:", "blob:"))] == []


# Every text's contrast with what lies behind it (WCAG 2.2, 1.4.3): backgrounds are followed up to the first that covers.
_CONTRASTS = """
() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1] };
  const lum = (c) => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c } return [255, 255, 255, 1] };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !e.checkVisibility({ visibilityProperty: true }) || e.closest("script, style, option")) continue;
    const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(behind(e))];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), text.slice(0, 60)]);
  }
  return found;
}
"""


def contrasts(page: Any) -> list[tuple[float, str]]:
    """Returns (contrast, text) of every visible text, the lowest first."""
    return sorted((ratio, text) for ratio, text in page.evaluate(_CONTRASTS))
