"""What every test file starts from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True, scope="module")
def fresh_accelerator_state() -> Iterator[None]:
    """Accelerate remembers precision and device for the whole process: no file inherits another's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
