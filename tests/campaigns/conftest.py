"""Says at the end how many cases each campaign tried."""

from __future__ import annotations

from tests.helpers.campaign import counts


def pytest_terminal_summary(terminalreporter) -> None:
    for name, count in sorted(counts.items()):
        said = ", ".join(f"{count[what]:,} {what}" for what in ("tried", "refused", "answered"))
        terminalreporter.write_line(f"{name}: {said}")
