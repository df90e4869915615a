"""Changes that hide behind the speech."""

import math

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Generators, Score
from sec4sr_pl.attacks.gradient import PGD, Loss, attack_loss
from sec4sr_pl.attacks.masking import Masking, masking
from sec4sr_pl.attacks.momentum import unit_mean
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.source import GradientSource, input_gradient, scores_and_gradient


class PsychoacousticPGD(PGD):
    """PGD that then makes its change inaudible, as far as the goal stays achieved; norm L-infinity.

    The first stage is PGD. In the second, an utterance that achieves the goal (with confidence and in every draw) steps
    down the excess of its change over the masking threshold, any other down the loss; the least excess that achieved it
    is kept. One that never did comes back as the first stage left it.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        step_size: of one step of the first stage; those of the second have it as mean, and shrink along a cosine.
        steps: of the first stage.
        masking_steps: of the second stage.
        draws: passes averaged at each step (EOT) against randomized recognizers.
        loss: as in `PGD`.
        source: as in `PGD`.

    Raises:
        ValueError: a parameter outside its range.

    Source: the two stages of Qin et al., "Imperceptible, robust, and targeted adversarial examples for automatic speech
    recognition", 2019; Schoenherr et al., "Adversarial attacks against automatic speech recognition systems via
    psychoacoustic hiding", 2019. In place of a weight between the two aims, steps switch between them (Polyak, 1967).
    """

    returns = "least audible success"

    def __init__(
        self,
        epsilon: float = 0.002,
        step_size: float = 0.0004,
        steps: int = 10,
        masking_steps: int = 100,
        draws: int = 1,
        loss: Loss | None = None,
        source: GradientSource | None = None,
    ) -> None:
        super().__init__(epsilon, step_size, steps, 0, draws, loss, source)
        if masking_steps < 1:
            raise ValueError(f"Expected masking_steps >= 1, got {masking_steps}")
        self.masking_steps = masking_steps

    @property
    def name(self) -> str:
        """PsychoacousticPGD-10-100 by steps, and what differs from the defaults."""
        head, _, rest = super().name.partition(f"-{self.steps}")
        return f"{head}-{self.steps}-{self.masking_steps}{rest}"

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
        """The least audible point found from `x`, in the ball around `waveforms`."""
        x = super().descend(score, x, waveforms, labels, lengths, objective, generator)
        masked = masking(waveforms, lengths)
        best, least = x, x.new_full((len(x),), torch.inf)
        for step in range(self.masking_steps):
            achieved, uphill = self.look(score, x, labels, lengths, objective, generator)
            excess, louder = excess_and_gradient(masked, x - waveforms)
            better = achieved & (excess < least)
            best, least = torch.where(better.unsqueeze(1), x, best), torch.where(better, excess, least)
            size = self.step_size * 0.5 * (1.0 + math.cos(math.pi * step / self.masking_steps))
            move = unit_mean(torch.where(achieved.unsqueeze(1), louder, uphill), lengths)
            x = self.project(x - size * move, waveforms, lengths)
        return best

    def look(
        self,
        score: Score,
        x: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> tuple[Tensor, Tensor]:
        """Whether the goal is achieved in every draw, (batch,), and the mean gradient of the loss."""
        scores, gradient = scores_and_gradient(
            self.source,
            score,
            x,
            lengths,
            lambda s: attack_loss(self.loss, objective, s, labels),
            generator,
            self.draws,
        )
        return torch.stack([objective.loss(draw, labels) < 0.0 for draw in scores]).all(0), gradient


def excess_and_gradient(masked: Masking, change: Tensor) -> tuple[Tensor, Tensor]:
    """The excess of (batch, time) changes over the threshold in dB, (batch,), and its gradient."""
    with torch.enable_grad():
        change = change.detach().requires_grad_(True)
        excess = masked.excess(change)
        gradient = input_gradient(excess.sum(), change)
    return excess.detach(), gradient
