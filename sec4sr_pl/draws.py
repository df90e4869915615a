"""Seeds and draws that depend on what is drawn for, never on worker, rank or what ran before."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor


def key(*parts: object) -> int:
    """A 63-bit seed from anything with a stable text: the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """A block after which the global generators of torch, of a device, numpy and Python are as they were before."""
    devices = [] if device.type == "cpu" else [torch.device(device.type, device.index or 0)]
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch, of one device, numpy and Python.

    `torch.manual_seed` seeds those of every kind of device, and for each that nobody has used yet it writes the stack
    down, which takes milliseconds.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        place = torch.get_device_module(device)
        with getattr(place, "device", nullcontext)(device):  # else that of the current one; some kinds have but one
            place.manual_seed(seed)


class Draws:
    """A generator that can be copied and pickled with the module that owns it."""

    def __init__(self) -> None:
        self.generator = torch.Generator()

    def seed(self, seed: int) -> None:
        """Restart."""
        self.generator.manual_seed(seed)

    def keys(self, count: int) -> list[int]:
        """A seed for each of `count` rows; that of a row does not depend on how many follow."""
        return torch.randint(2**62, (count,), generator=self.generator).tolist()

    def __getstate__(self) -> Tensor:
        return self.generator.get_state()

    def __setstate__(self, state: Tensor) -> None:
        self.generator = torch.Generator()
        self.generator.set_state(state)


def uniform(keys: Sequence[int], like: Tensor) -> Tensor:
    """Uniform draws in [0, 1) of the shape of `like`, (batch, ...), each row from its own key; the same on any device.

    Args:
        keys: one a row.
        like: gives shape, type and device.
    """
    generator = torch.Generator()
    rows = [torch.rand(like.shape[1:], generator=generator.manual_seed(seed), dtype=torch.float32) for seed in keys]
    return torch.stack(rows).to(like)


def normal(keys: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal draws of the shape of `like`, (batch, time), each row from its own key; the same on any device.

    The draws of a row's valid samples do not depend on its padding.

    Args:
        keys: one a row.
        like: gives shape, type and device.
    """
    generator, time = torch.Generator(), like.shape[1]
    size = 16 * (time // 16 + 1)  # torch draws in blocks of 16, and what is left over in another way
    rows = [torch.randn(size, generator=generator.manual_seed(seed), dtype=torch.float32)[:time] for seed in keys]
    return torch.stack(rows).to(like)
