"""How much memory a score function takes, counted from the sizes of what its operations return: on any device."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, the most bytes that results of operations take at once.

    What was there before is not counted, nor is what a library takes inside of one operation. Nothing waits for a
    device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: set[int] = set()
        self.watched: list[weakref.finalize[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the storages of its results that are none of its arguments'."""
        for tensor in tensors((args, kwargs)):
            self.meet(tensor, 0)
        results = func(*args, **(kwargs or {}))
        for tensor in tensors(results):
            self.meet(tensor, tensor.untyped_storage().nbytes())
        return results

    def meet(self, tensor: Tensor, size: int) -> None:
        """Count a storage that is seen for the first time, until it is gone."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.watched.append(weakref.finalize(storage, self.forget, storage._cdata, size))

    def __exit__(self, *error: Any) -> None:
        """Look at nothing any more: weights would keep what watches them."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for watch in self.watched:
            watch.detach()
        self.watched.clear()

    def forget(self, address: int, size: int) -> None:
        """A storage is gone."""
        self.known.discard(address)
        self.now -= size


def tensors(values: Any) -> list[Tensor]:
    """The tensors among nested values."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Cost:
    """The memory that an accelerator needs for a sample: found at the first pass without gradients, and kept."""

    bytes_per_sample: float | None = None

    @contextmanager
    def measured(self, waveforms: Tensor) -> Iterator[None]:
        """Around the pass of (batch, time) waveforms."""
        if waveforms.device.type == "cpu" or self.bytes_per_sample is not None or torch.is_grad_enabled():
            yield
            return
        with PeakMemory() as memory:
            yield
        self.bytes_per_sample = max(1, memory.peak) / max(1, waveforms.numel())
