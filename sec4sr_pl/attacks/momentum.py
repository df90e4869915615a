"""Projected gradient descent that remembers where it came from, for examples that transfer."""

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Generators, Score
from sec4sr_pl.attacks.gradient import PGD, Loss
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.source import GradientSource, uniform
from sec4sr_pl.types import mask_padding


class MIFGSM(PGD):
    """PGD along accumulated gradients, norm L-infinity: momentum, and if asked Nesterov's look ahead, variance tuning.

    Each gradient is divided by its mean absolute value over the utterance's valid samples. With variance tuning it is
    corrected by how far the last step's gradient was from the mean of gradients around it; that asks
    (1 + neighbors) * draws forward rows a step. Input diversity is a source: `InputDiversity`.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        step_size: of one step.
        steps: how many.
        restarts: as in `PGD`.
        draws: as in `PGD`.
        loss: as in `PGD`.
        source: as in `PGD`.
        momentum: weight of what was accumulated.
        nesterov: take the gradient where the momentum would lead (NI-FGSM).
        neighbors: gradients around each iterate; 0: no variance tuning, 20 in the paper (VMI-FGSM).
        radius: how far around, in epsilons.

    Raises:
        ValueError: a parameter outside its range.

    Source: Dong et al., "Boosting adversarial attacks with momentum", 2018, algorithm 1; Lin et al., "Nesterov
    accelerated gradient and scale invariance for adversarial attacks", 2020, equations 6 and 7; Wang and He,
    "Enhancing the transferability of adversarial attacks through variance tuning", 2021, algorithm 1.
    """

    def __init__(
        self,
        epsilon: float = 0.002,
        step_size: float = 0.0004,
        steps: int = 10,
        restarts: int = 0,
        draws: int = 1,
        loss: Loss | None = None,
        source: GradientSource | None = None,
        momentum: float = 1.0,
        nesterov: bool = False,
        neighbors: int = 0,
        radius: float = 1.5,
    ) -> None:
        super().__init__(epsilon, step_size, steps, restarts, draws, loss, source)
        if not (0.0 <= momentum < torch.inf and neighbors >= 0 and 0.0 <= radius < torch.inf):
            raise ValueError(
                f"Expected finite momentum, neighbors, radius >= 0, got {momentum}, {neighbors} and {radius}"
            )
        self.momentum, self.nesterov, self.neighbors, self.radius = momentum, nesterov, neighbors, radius

    @property
    def name(self) -> str:
        """MIFGSM-10, and what differs from the defaults."""
        marks = [f"mu{self.momentum:g}"] * (self.momentum != 1.0) + ["NI"] * self.nesterov
        marks += [f"VT{self.neighbors}"] * (self.neighbors > 0) + [f"r{self.radius:g}"] * (self.radius != 1.5)
        return "-".join([super().name, *marks])

    def descend(
        self,
        score: Score,
        x: Tensor,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators = None,
    ) -> Tensor:
        """One run from `x`, in the ball around `waveforms`."""

        def gradient_at(point: Tensor) -> Tensor:
            return self.gradient(score, point, labels, lengths, objective, generator)

        accumulated, variance = torch.zeros_like(x), torch.zeros_like(x)
        for step in range(self.steps):
            ahead = x - self.momentum * self.step_size * accumulated if self.nesterov else x
            gradient = gradient_at(ahead)
            accumulated = self.momentum * accumulated + unit_mean(gradient + variance, lengths)
            if self.neighbors and step + 1 < self.steps:
                around = torch.zeros_like(x)
                for _ in range(self.neighbors):
                    shift = self.radius * self.epsilon * (2.0 * uniform(x, generator) - 1.0)
                    around += gradient_at(mask_padding(x + shift, lengths))
                variance = around / self.neighbors - gradient
            x = self.project(x - self.step_size * self.direction(accumulated, waveforms, lengths), waveforms, lengths)
        return x


def unit_mean(gradient: Tensor, lengths: Tensor) -> Tensor:
    """(batch, time) with a mean absolute value of 1 over each row's valid samples, or 0 where it is zero."""
    masked = mask_padding(gradient, lengths)
    mean = masked.abs().sum(1, keepdim=True) / lengths.unsqueeze(1)
    return masked / mean.clamp_min(torch.finfo(mean.dtype).tiny)
