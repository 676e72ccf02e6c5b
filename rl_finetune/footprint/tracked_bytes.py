"""Counts the bytes of tensors that live at once while something runs, on real tensors or on ones without memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TrackedBytes(TorchDispatchMode):
    """Within, `peak` is the most bytes that tensors made here have held at once; what was there before is not counted.

    `live` is what they hold now, `largest` the most that one of them has held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            self._notice(tensor, counts=False)
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            self._notice(tensor, counts=True)
        self.peak = max(self.peak, self.live)
        return made

    def _notice(self, tensor: object, *, counts: bool) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known and self._known[key]() is not None:
            return
        size = storage.nbytes() if counts else 0
        self.live += size
        self.largest = max(self.largest, size)
        self._known[key] = weakref.ref(storage, lambda _: self._let_go(key, size))

    def _let_go(self, key: int, size: int) -> None:
        self.live -= size
        self._known.pop(key, None)


@contextmanager
def autocast_as_on_a_gpu(dtype: torch.dtype | None) -> Iterator[None]:
    """Casts as torch.autocast("cuda", dtype) does, also where there is no GPU and only shapes are computed."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


class _FusedAttention(torch.autograd.Function):
    """Attention that keeps what a fused kernel keeps: its inputs, its output and one number a row."""

    @staticmethod
    def forward(ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> None:
        raise NotImplementedError("only shapes are computed")


@contextmanager
def fused_attention() -> Iterator[None]:
    """Counts attention as a GPU's fused kernels hold it; without a GPU, PyTorch would write out the matrix of all pairs."""
    before = functional.scaled_dot_product_attention

    def attend(query, key, value, *settings, **named):
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (each.to(torch.get_autocast_dtype("cuda")) for each in (query, key, value))
        return _FusedAttention.apply(query, key, value)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before
