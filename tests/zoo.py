"""Systems that mask gradients: each computes what the undefended recognizer does, or nearly, and misleads its attacker.

Each acts on a tensor whose first dimension is the batch, so it stands in a defense of the waveform as well as in the
scorer, on the embeddings.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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


class Masked(Defense):
    """A mask of the waveform."""

    def __init__(self, name: str) -> None:
        super().__init__("waveform")
        self.name, self.mask = name, ZOO[name]
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
    """A mask of the embeddings, in the scorer."""

    def __init__(self, embedding_size: int, speakers: Sequence[str], name: str) -> None:
        super().__init__(embedding_size, speakers)
        self.name, self.mask = name, ZOO[name]
        self.randomized = "declared randomized" in name

    def forward(self, embeddings: Tensor) -> Tensor:
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
    return ("defense",) if "declared without" in name else ("defense", "scorer")
