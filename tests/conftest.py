"""What every test file starts from."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from accelerate.state import AcceleratorState

from shared.runs.lock import release_all


@pytest.fixture(autouse=True, scope="module")
def runs_end_with_their_file() -> Iterator[None]:
    """A run that a test leaves in the middle would hold its folder until all tests have ended."""
    yield
    release_all()


@pytest.fixture(autouse=True, scope="module")
def fresh_accelerator_state() -> Iterator[None]:
    """Accelerate remembers precision and device for the whole process: no file inherits another's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
