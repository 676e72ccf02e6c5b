"""The page of scored pictures: what it keeps of many, and which crops it shows."""

from __future__ import annotations

import re

import numpy as np

from reward_model.measuring.score_page import ScorePage, worst_places
from reward_model.measuring.scored import ScoredPicture


def row(name: str, score: float, **changes) -> ScoredPicture:
    empty = dict.fromkeys(("broken", "worst", "mean", "above_clean", "above_restored", "detail"))
    return ScoredPicture(name, 40, 30, score, False, **{**empty, **changes})


def test_the_worst_places_lie_apart_and_hold_what_is_broken():
    levels = np.zeros((240, 360), np.uint16)
    levels[100:130, 200:230] = 60000
    levels[10:30, 20:40] = 30000
    places = worst_places(levels)
    assert len(places) == 3
    first, second = places[:2]
    assert first[0] <= 100 and first[0] + 96 >= 130 and first[1] <= 200 and first[1] + 96 >= 230  # noqa: PT018
    assert second[0] <= 10 and second[1] <= 20  # noqa: PT018
    assert all(max(abs(a - c), abs(b - d)) >= 96 for i, (a, b) in enumerate(places) for c, d in places[:i])
    assert worst_places(np.zeros((50, 50), np.uint16)) == []


def test_only_the_worst_of_many_are_kept():
    page, picture = ScorePage(max_pictures=3), np.zeros((30, 40, 3), np.uint8)
    for index, score in enumerate((0.5, 0.1, 0.9, 0.3, 0.2, 0.7)):
        page.add(row(f"p{index}", score), picture, None)
    text = page.html("all")
    assert re.findall(r"<b>(p\d)</b>", text) == ["p1", "p4", "p3"]
    assert "the 3 worst of 6 pictures" in text


def test_names_and_facts_are_written_as_text():
    page = ScorePage()
    facts = {"above_clean": 12.0, "above_restored": 88.0, "broken": 0.03, "worst": 0.4, "detail": 1.2}
    page.add(row("<script>.png", 0.5, **facts), np.zeros((30, 40, 3), np.uint8), None)
    text = page.html("a & b")
    assert "<script>.png" not in text
    assert "&lt;script&gt;.png" in text
    assert "<h1>a &amp; b</h1>" in text
    for fact in ("above 12 % of clean, 88 % of restored", "3.0% broken", "worst 1 %: 0.40", "detail unlike"):
        assert fact in text
