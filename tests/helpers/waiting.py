"""Sees everything for which a CPU waits for a GPU: a value that Python reads, a size that depends on values, a copy."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique")
_METHODS = ("tolist", "cpu", "numpy")  # on a CPU they are no operations of their own


class Waiting(TorchDispatchMode):
    """Within, `seen` collects the names of such operations, on whatever device they run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._patches = [mock.patch.object(torch.Tensor, name, self._noting(name)) for name in _METHODS]

    def __enter__(self):
        for patch in self._patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *raised):
        for patch in self._patches:
            patch.stop()
        return super().__exit__(*raised)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name
        if name.startswith(_WAITS):
            self.seen.append(name)
        return operation(*args, **(kwargs or {}))

    def _noting(self, name: str) -> Callable:
        real = getattr(torch.Tensor, name)

        def method(tensor, *args, **kwargs):
            self.seen.append(name)
            return real(tensor, *args, **kwargs)

        return method


def waits_of(run: Callable[[], object]) -> int:
    """Returns how often the CPU would wait in `run()`."""
    with Waiting() as waiting:
        run()
    return len(waiting.seen)
