"""Projected gradient descent in balls that bound the energy of the change."""

import copy
import math

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Generators
from sec4sr_pl.attacks.gradient import PGD, Loss
from sec4sr_pl.attacks.source import GradientSource, normal, uniform
from sec4sr_pl.types import mask_padding

FULL_RANGE = 2.0
"""As far as a sample can change: the energy bounds it, not the ball of the base."""


class L2PGD(PGD):
    """Projected gradient descent along the normalized gradient, norm L2: the last iterate of the best run.

    A file rounded to 16 bits may lie outside the ball by the rounding, 9e-6 times the root of the number of samples.

    Args:
        radius: of the ball, the L2 norm of the change of an utterance.
        step_size: of one step, as a part of the radius.
        steps: how many.
        restarts: as in `PGD`; the random starts are uniform in the ball.
        draws: as in `PGD`.
        loss: as in `PGD`.
        source: as in `PGD`.

    Raises:
        ValueError: a parameter outside its range.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.
    """

    distance = "L2"

    def __init__(
        self,
        radius: float = 0.25,
        step_size: float = 0.2,
        steps: int = 10,
        restarts: int = 0,
        draws: int = 1,
        loss: Loss | None = None,
        source: GradientSource | None = None,
    ) -> None:
        if not 0.0 <= radius < math.inf:
            raise ValueError(f"Expected a finite radius >= 0, got {radius}")
        super().__init__(min(radius, FULL_RANGE), step_size, steps, restarts, draws, loss, source)
        self.radius = radius

    @property
    def ball(self) -> str:
        """The budget, for the name."""
        return f"r{self.radius:g}"

    @property
    def name(self) -> str:
        """L2PGD-10-r0.25, and what differs from the defaults."""
        marks = [self.ball] + [f"x{self.restarts}"] * (self.restarts > 0) + [f"EOT{self.draws}"] * (self.draws > 1)
        marks += [f"step{self.step_size:g}"] * (self.step_size != 0.2) + [self.loss or ""]
        marks += [] if self.source is None else [self.source.name]
        return "-".join([type(self).__name__, str(self.steps), *filter(None, marks)])

    def scaled(self, strength: float) -> "L2PGD":
        """The same attack in a ball of `strength` times the radius; its steps are parts of it."""
        weaker = copy.copy(self)
        weaker.radius, weaker.epsilon = self.radius * strength, min(self.radius * strength, FULL_RANGE)
        return weaker

    def radii(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The radius of each row, (batch, 1)."""
        return waveforms.new_full((len(waveforms), 1), self.radius)

    def start(self, waveforms: Tensor, lengths: Tensor, generator: Generators) -> Tensor:
        """A uniformly drawn point of the ball: a normal direction, at a distance of U^(1/samples) radii."""
        direction = unit_energy(normal(1, waveforms, lengths, generator)[0])
        distance = uniform(waveforms[:, :1], generator) ** (1.0 / lengths.unsqueeze(1))
        return waveforms + self.radii(waveforms, lengths) * distance * direction

    def direction(self, gradient: Tensor, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The gradient on valid samples, as long as the radius."""
        return self.radii(waveforms, lengths) * unit_energy(mask_padding(gradient, lengths))

    def project(self, x: Tensor, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The change shortened to the radius, then brought into [-1, 1], which shortens it further."""
        change = x - waveforms
        size = norm(change).clamp_min(1e-12)
        return (waveforms + change * (self.radii(waveforms, lengths) / size).clamp_max(1.0)).clamp(-1.0, 1.0)


class SNRPGD(L2PGD):
    """L2-PGD whose radius follows from each utterance's own energy: its change stays `snr` dB below it.

    Silence has no energy, so nothing of it may change. A file rounded to 16 bits may miss the budget by the rounding.

    Args:
        snr: lowest signal-to-noise ratio in dB, over the valid samples of an utterance.
        step_size: of one step, as a part of the radius.
        steps: how many.
        restarts: as in `L2PGD`.
        draws: as in `PGD`.
        loss: as in `PGD`.
        source: as in `PGD`.

    Raises:
        ValueError: a parameter outside its range.
    """

    distance = "L2, in dB below the utterance"

    def __init__(
        self,
        snr: float = 35.0,
        step_size: float = 0.2,
        steps: int = 10,
        restarts: int = 0,
        draws: int = 1,
        loss: Loss | None = None,
        source: GradientSource | None = None,
    ) -> None:
        if not math.isfinite(snr):
            raise ValueError(f"Expected a finite SNR in dB, got {snr}")
        super().__init__(FULL_RANGE, step_size, steps, restarts, draws, loss, source)
        self.snr = snr

    @property
    def ball(self) -> str:
        """The budget, for the name."""
        return f"{self.snr:g}dB"

    def scaled(self, strength: float) -> "SNRPGD":
        """The same attack with `strength` times the amplitude of the change."""
        weaker = copy.copy(self)
        weaker.snr = self.snr - 20.0 * math.log10(strength) if strength > 0.0 else math.inf
        return weaker

    def radii(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The norm of the valid samples, less `snr` dB, (batch, 1)."""
        inside = 1.0 - 1e-6  # a hair, so that float32's rounding does not miss the budget
        return norm(mask_padding(waveforms, lengths)) * inside * math.pow(10.0, -self.snr / 20.0)


def norm(signal: Tensor) -> Tensor:
    """The L2 norm of each row of (batch, time), (batch, 1)."""
    size: Tensor = torch.linalg.vector_norm(signal, dim=1, keepdim=True)
    return size


def unit_energy(signal: Tensor) -> Tensor:
    """(batch, time) with norm 1 in each row, or 0 where it is zero; scaled first, so that no square underflows."""
    signal = signal / signal.abs().amax(1, keepdim=True).clamp_min(torch.finfo(signal.dtype).tiny)
    return signal / norm(signal).clamp_min(torch.finfo(signal.dtype).tiny)
