"""A row's verdict is a paired t-test over the pictures there are."""

from __future__ import annotations

import pytest
import torch

from rl_finetune.evidence.measure import Evaluation, change_rows, format_table


def rows_of(changes: list[float]):
    before = torch.linspace(20.0, 30.0, len(changes))
    made = [Evaluation(torch.empty(0), {"psnr": v}, 0.0) for v in (before, before + torch.tensor(changes))]
    return change_rows(*made, {})


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        # Two standard errors are not enough for four pictures: t = 2.6 on 3 degrees of freedom has p .08.
        ([0.1, 0.3, 0.5, 0.1], "level"),
        ([0.2, 0.3, 0.4, 0.2], "better"),
        ([-0.2, -0.3, -0.4, -0.2], "worse"),
        # And for 40, t = 2.5 on 39 has p .018.
        ([0.25 + 0.6325 * (-1) ** i for i in range(40)], "better"),
    ],
)
def test_few_pictures_need_a_larger_change(changes, verdict):
    (row,) = rows_of(changes)
    assert row.verdict == verdict
    title = format_table([row], title="sr", seconds=(0.0, 0.0)).splitlines()[0]
    assert title == f"sr, n = {len(changes)}; better, worse: paired t-test, two-sided p < 0.05 in the row by itself"
