"""Systems that mask gradients: each computes what the undefended recognizer does, or nearly, and misleads its attacker.

Each acts on a tensor whose first dimension is the batch, so it stands in a defense of the waveform as well as in the
scorer, on the embeddings; two act on the scores.
"""

import itertools
import math
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.defenses import Defense
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet

Mask = Callable[[Tensor], Tensor]


class Backward(torch.autograd.Function):
    """The identity with another gradient."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, change: Mask) -> Tensor:
        ctx.change = change
        return signal * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradient), None


def backward(change: Mask) -> Mask:
    """A mask whose gradient is what `change` makes of the true one."""
    return lambda signal: Backward.apply(signal, change)


def noise_like(gradient: Tensor) -> Tensor:
    """As large as the gradient, and unrelated."""
    return torch.randn_like(gradient) * gradient.square().mean().sqrt()


def flipped(gradient: Tensor) -> Tensor:
    """Half of its signs changed, always the same."""
    generator = torch.Generator().manual_seed(0)
    return gradient * (2.0 * torch.randint(0, 2, gradient.shape[1:], generator=generator).to(gradient) - 1.0)


def sparse(gradient: Tensor) -> Tensor:
    """Nothing left but every hundredth, or the first."""
    kept = torch.zeros_like(gradient)
    kept[:, ::100] = gradient[:, ::100]
    return kept


def rippled(wavelength: float) -> Mask:
    """A ripple too low to be heard, whose slope is a hundred times that of the signal."""

    def ripple(signal: Tensor) -> Tensor:
        size = wavelength * signal.detach().abs().amax(1, keepdim=True).clamp_min(1e-9)
        return signal + 16.0 * size * torch.sin(2.0 * math.pi * signal / size)

    return ripple


def rounded(signal: Tensor) -> Tensor:
    """To a ten-thousandth of its largest value, whose gradient is zero."""
    size = 1e-4 * signal.detach().abs().amax(1, keepdim=True).clamp_min(1e-9)
    return (signal / size).round() * size


def noisy(signal: Tensor) -> Tensor:
    """Noise of the global generator, a fifth of the signal, of which nobody is told."""
    return signal + 0.2 * signal.detach().square().mean(1, keepdim=True).sqrt() * torch.randn_like(signal)


def turned(signal: Tensor) -> Tensor:
    """A part of it changes its place, by the global generator."""
    start = int(torch.randint(0, signal.shape[1] // 2, ()))
    return torch.cat([signal[:, : signal.shape[1] // 2].roll(start, 1), signal[:, signal.shape[1] // 2 :]], 1)


OWN = torch.Generator()


def own_noise(signal: Tensor) -> Tensor:
    """As `noisy`, by a generator that nothing restarts."""
    noise = torch.randn(signal.shape, generator=OWN).to(signal)
    return signal + 0.2 * signal.detach().square().mean(1, keepdim=True).sqrt() * noise


ZOO: dict[str, Mask] = {
    "reversed": backward(torch.neg),
    "random": backward(noise_like),
    "buried": backward(lambda gradient: 0.05 * gradient + noise_like(gradient)),
    "flipped": backward(flipped),
    "shifted": backward(lambda gradient: gradient.roll(gradient.shape[1] // 3, 1)),
    "sparse": backward(sparse),
    "tiny": backward(lambda gradient: 1e-37 * gradient),
    "not a number": backward(lambda gradient: gradient * torch.nan),
    "zero": rounded,
    "fine ripple": rippled(1e-6),
    "coarse ripple": rippled(1e-4),
    "noise": noisy,
    "turned": turned,
    "noise of its own": own_noise,
    "reversed, declared without a gradient": backward(torch.neg),
    "random, declared without a gradient": backward(noise_like),
    "random, declared randomized": backward(noise_like),
    "noise, declared without a gradient": noisy,
}


def on_the_grid(signal: Tensor) -> Tensor:
    """What lies between the steps of 16 bits, as no recording does, is mirrored at the next one: its slope is -1."""
    grid = (signal * 32768.0).round() / 32768.0
    return torch.where(grid == signal, signal, 2.0 * grid - signal)


def purified(signal: Tensor) -> Tensor:
    """Fifty steps toward itself, the target detached: nothing of the start is left, nor of the gradient."""
    pure = signal
    for _ in range(50):
        pure = pure + 0.9 * (signal.detach() - pure)
    return pure


def chaotic(signal: Tensor) -> Tensor:
    """What lies below a ten-thousandth of its largest value goes fifteen times through a tent map, a slope of 2^15."""
    size = 1e-4 * signal.detach().abs().amax(1, keepdim=True).clamp_min(1e-9)
    whole = (signal / size).floor().detach()
    rest = signal / size - whole
    for _ in range(15):
        rest = 1.0 - (2.0 * rest - 1.0).abs()
    return (whole + rest) * size


def sawtooth(signal: Tensor) -> Tensor:
    """It falls by one where it should rise by one, and jumps up every ten-thousandth of its largest value."""
    size = 1e-4 * signal.detach().abs().amax(1, keepdim=True).clamp_min(1e-9)
    return 2.0 * (signal / size).round() * size - signal


def straight_through(signal: Tensor, output: Tensor) -> Tensor:
    """The output, with the gradient of the signal."""
    return signal + (output - signal).detach()


def hashed(signal: Tensor) -> Tensor:
    """Up to 8 ms later, by a hash of each row: always the same, and another a bit away; the gradient comes as late."""
    late = signal.detach().clone()
    for row in late:
        delay = zlib.crc32(row[row != 0].cpu().numpy().tobytes()) % 128
        row.copy_(functional.pad(row, (delay, 0))[: len(row)])
    return straight_through(signal, late)


def polarity(signal: Tensor) -> Tensor:
    """Turned upside down or not, which nobody hears, by Python's generator; the gradient is not turned back."""
    return straight_through(signal, random.choice((-1.0, 1.0)) * signal)


CALLS = itertools.count()


def alternating(signal: Tensor) -> Tensor:
    """At every second call the gradient has the wrong sign."""
    return signal if next(CALLS) % 2 == 0 else 2.0 * signal.detach() - signal


def saturated(scores: Tensor) -> Tensor:
    """Scores so far apart that no softmax has a gradient."""
    return 1e4 * scores


def stalled(scores: Tensor) -> Tensor:
    """No gradient near the decision boundary, where the best score is within four of the second."""
    best = scores.detach().topk(2, 1).values
    return torch.where(best[:, :1] - best[:, 1:] < 4.0, scores.detach(), scores)


def branched(signal: Tensor) -> Tensor:
    """A low band and the rest, added again; the low one is subtracted in the gradient, ten times."""
    low = functional.avg_pool1d(signal.unsqueeze(1), 9, 1, 4).squeeze(1)
    return signal + 10.0 * (low.detach() - low)


def dithered(signal: Tensor) -> Tensor:
    """A dither of NumPy's generator, then steps, whose gradient is that of a ripple: of the wrong sign at each edge."""
    size = 1e-3 * signal.detach().abs().amax(1, keepdim=True).clamp_min(1e-9)
    moved = signal + size * torch.from_numpy(np.random.rand(*signal.shape) - 0.5).to(signal)
    ripple = moved + 16.0 * size * torch.sin(2.0 * math.pi * moved / size)
    return straight_through(ripple, (moved / size).round() * size)


def some(signal: Tensor) -> Tensor:
    """The gradient is reversed for utterances whose largest value stands at an even place."""
    even = signal.detach().abs().argmax(1, keepdim=True) % 2 == 0
    return torch.where(even, 2.0 * signal.detach() - signal, signal)


HELD_OUT: dict[str, Mask] = {
    "purified": purified,
    "saturated": saturated,
    "stalled": stalled,
    "chaotic": chaotic,
    "sawtooth, declared randomized": sawtooth,
    "on the grid": on_the_grid,
    "hashed": hashed,
    "polarity": polarity,
    "alternating": alternating,
    "dithered": dithered,
    "some": some,
    "branched, declared without a gradient": branched,
}
"""Held out: written without looking at the sentinel or its limits, which were set having seen `ZOO`."""

ALL = {**ZOO, **HELD_OUT}
ONLY_WAVEFORMS = ("on the grid", "hashed", "polarity")
"""Those that make no sense of embeddings."""
OF_SCORES = ("saturated", "stalled")
"""Those that act on the scores, after the scorer's head."""


class Masked(Defense):
    """A mask of the waveform."""

    def __init__(self, name: str) -> None:
        super().__init__("waveform")
        self.name, self.mask = name, ALL[name]
        self.randomized = "declared randomized" in name

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.mask(signal), lengths


class MaskedWithoutGradient(Masked):
    """It declares that it has no gradient, and lets through what its mask gives."""

    differentiable = False

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return signal * 1.0, lengths

    def through(self, signal: Tensor, output: Tensor, lengths: Tensor) -> Tensor:
        return self.mask(signal)


class MaskedHead(ClosedSet):
    """A mask of the embeddings or the scores, in the scorer."""

    def __init__(self, embedding_size: int, speakers: Sequence[str], name: str) -> None:
        super().__init__(embedding_size, speakers)
        self.name, self.mask = name, ALL[name]
        self.randomized = "declared randomized" in name

    def forward(self, embeddings: Tensor) -> Tensor:
        if self.name in OF_SCORES:
            return self.mask(super().forward(embeddings))
        return super().forward(self.mask(embeddings))


def masked(recognizer: Recognizer, name: str, place: str) -> Recognizer:
    """The recognizer with a mask in a `defense` or in the `scorer`."""
    if place == "scorer":
        head = MaskedHead(recognizer.scorer.embedding_size, recognizer.scorer.speakers, name)
        head.load_state_dict(recognizer.scorer.state_dict())
        return Recognizer(recognizer.features, recognizer.backbone, head).eval()
    kind = MaskedWithoutGradient if "declared without" in name else Masked
    return recognizer.with_defenses([kind(name)])


def places(name: str) -> tuple[str, ...]:
    """Where a system stands; a scorer has nothing to declare about its gradient."""
    if name in OF_SCORES:
        return ("scorer",)
    if name in ONLY_WAVEFORMS or "declared without" in name:
        return ("defense",)
    return ("defense", "scorer")
