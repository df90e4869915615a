"""Projected gradient descent in the L-infinity ball, and its presets."""

import copy
import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.attacks.base import Attack, Generators, Score
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.source import GradientSource, scores_and_gradient, uniform

Loss = Literal["cross_entropy", "margin"]
AnyLoss = Loss | Literal["dlr"]


def attack_loss(kind: AnyLoss | None, objective: Objective, scores: Tensor, labels: Tensor) -> Tensor:
    """The loss to minimize, (batch,); the sign belongs to the loss, not to the caller.

    Args:
        kind: None is cross-entropy in a closed set and the margin otherwise; "dlr" is the margin over the distance of
            the best score from the third (targeted: from the mean of third and fourth), so that it has no scale.
        objective: the goal.
        scores: (batch, speakers).
        labels: (batch,).

    Raises:
        ValueError: cross-entropy or DLR where speakers can be rejected, or DLR with fewer than three.

    Source: DLR is equation 6 of Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", 2020.
    """
    closed = objective.threshold == -math.inf
    if kind == "margin" or (kind is None and not closed):
        return objective.loss(scores, labels)
    if not closed:
        name = "DLR" if kind == "dlr" else "Cross-entropy"
        raise ValueError(f"{name} has no label for a rejected speaker: use loss 'margin' where there is a threshold")
    if kind == "dlr":
        return objective.loss(scores, labels) / score_range(scores, objective.targeted)
    entropy = functional.cross_entropy(scores, labels, reduction="none")
    return entropy if objective.targeted else -entropy


def score_range(scores: Tensor, targeted: bool) -> Tensor:
    """How far the best score stands out, (batch,): from the third, or targeted from the mean of third and fourth."""
    if scores.shape[1] < 3:
        raise ValueError(f"DLR needs at least 3 speakers, got {scores.shape[1]}: use loss 'margin'")
    ordered = scores.sort(dim=1, descending=True).values
    return (ordered[:, 0] - ordered[:, 2 : 4 if targeted else 3].mean(1)).clamp_min(1e-12)


class PGD(Attack):
    """Projected gradient descent: x <- clip(x - step_size * sign(gradient of the loss)), norm L-infinity.

    Returns the last iterate of the best run and never stops early. Without random starts this is the basic iterative
    method, the PGD-n of the SEC4SR paper.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        step_size: of one step.
        steps: how many.
        restarts: 0 starts at the utterance itself; n >= 1 is n uniform random starts, the best kept per utterance.
        draws: gradients averaged at each step (EOT) against randomized recognizers.
        loss: "cross_entropy", "margin", or None for cross-entropy in a closed set and margin otherwise.
        source: of the gradients, None: back-propagation; `NES` makes it a black-box attack.

    Raises:
        ValueError: a parameter outside its range.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.
    """

    returns = "last iterate"

    def __init__(
        self,
        epsilon: float = 0.002,
        step_size: float = 0.0004,
        steps: int = 10,
        restarts: int = 0,
        draws: int = 1,
        loss: Loss | None = None,
        source: GradientSource | None = None,
    ) -> None:
        if not (0.0 <= epsilon <= 2.0 and 0.0 <= step_size < math.inf):
            raise ValueError(f"Expected epsilon in [0, 2] and a finite step_size >= 0, got {epsilon} and {step_size}")
        if steps < 1 or restarts < 0 or draws < 1:
            raise ValueError(f"Expected steps >= 1, restarts >= 0, draws >= 1, got {steps}, {restarts}, {draws}")
        if loss not in (None, "cross_entropy", "margin"):
            raise ValueError(f"Expected loss 'cross_entropy', 'margin' or None, got {loss!r}")
        self.epsilon, self.step_size, self.steps = epsilon, step_size, steps
        self.restarts, self.draws, self.loss, self.source = restarts, draws, loss, source

    @property
    def name(self) -> str:
        """PGD-10, the way papers write it, and what differs from the paper's parameters."""
        marks = [f"x{self.restarts}"] * (self.restarts > 0) + [f"EOT{self.draws}"] * (self.draws > 1)
        marks += [f"eps{self.epsilon:g}"] * (self.epsilon != 0.002)
        marks += [f"step{self.step_size:g}"] * ("step_size" in self.settings() and self.step_size != 0.0004)
        marks += [self.loss or ""] * ("loss" in self.settings())
        marks += [] if self.source is None else [self.source.name]
        return "-".join([type(self).__name__, str(self.steps), *filter(None, marks)])

    def scaled(self, strength: float) -> "PGD":
        """The same attack in a ball of `strength` times the radius, with steps as much shorter."""
        weaker = copy.copy(self)
        weaker.epsilon, weaker.step_size = self.epsilon * strength, self.step_size * strength
        return weaker

    def perturb(
        self,
        score: Score,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The last iterate of each utterance's best run."""
        if self.restarts == 0:
            return self.descend(score, waveforms, waveforms, labels, lengths, objective, generator)
        best = waveforms
        lowest = torch.full((len(waveforms),), torch.inf, device=waveforms.device)
        for _ in range(self.restarts):
            start = self.start(waveforms, lengths, generator).clamp(-1.0, 1.0)
            run = self.descend(score, start, waveforms, labels, lengths, objective, generator)
            if self.restarts == 1:
                return run
            margin = torch.stack([objective.loss(score(run, lengths), labels) for _ in range(self.draws)]).mean(0)
            better = margin < lowest
            best, lowest = torch.where(better.unsqueeze(1), run, best), torch.where(better, margin, lowest)
        return best

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
        for _ in range(self.steps):
            gradient = self.gradient(score, x, labels, lengths, objective, generator)
            x = self.project(x - self.step_size * self.direction(gradient, waveforms, lengths), waveforms, lengths)
        return x

    def start(self, waveforms: Tensor, lengths: Tensor, generator: Generators) -> Tensor:
        """A random point of the ball around (batch, time) waveforms."""
        return waveforms + self.epsilon * (2.0 * uniform(waveforms, generator) - 1.0)

    def direction(self, gradient: Tensor, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The steepest ascent in the ball's norm, (batch, time): a step is `-step_size` times it."""
        return gradient.sign()

    def project(self, x: Tensor, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The point of the ball around (batch, time) waveforms, and of [-1, 1], closest to `x`."""
        return torch.clamp(x, (waveforms - self.epsilon).clamp_min(-1.0), (waveforms + self.epsilon).clamp_max(1.0))

    def gradient(
        self,
        score: Score,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators = None,
    ) -> Tensor:
        """The gradient of the loss, (batch, time), its mean over `draws` passes."""
        return scores_and_gradient(
            self.source,
            score,
            waveforms,
            lengths,
            lambda scores: attack_loss(self.loss, objective, scores, labels),
            generator,
            self.draws,
        )[1]


class FGSM(PGD):
    """The fast gradient sign method: one step of epsilon.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        draws: gradients averaged (EOT) against randomized recognizers.
        loss: as in `PGD`.
        source: as in `PGD`.

    Source: Goodfellow et al., "Explaining and harnessing adversarial examples", 2015.
    """

    returns = "the step"

    def __init__(
        self,
        epsilon: float = 0.002,
        draws: int = 1,
        loss: Loss | None = None,
        source: GradientSource | None = None,
    ) -> None:
        super().__init__(epsilon, step_size=epsilon, steps=1, draws=draws, loss=loss, source=source)

    @property
    def name(self) -> str:
        """FGSM; the one step is no news."""
        return super().name.replace("-1", "", 1)


class CWinf(PGD):
    """PGD on the margin loss.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        step_size: of one step.
        steps: how many.
        restarts: as in `PGD`.
        draws: gradients averaged at each step (EOT) against randomized recognizers.
        source: as in `PGD`.

    Source: the margin of Carlini and Wagner, "Towards evaluating the robustness of neural networks", 2017, in the ball.
    """

    def __init__(
        self,
        epsilon: float = 0.002,
        step_size: float = 0.0004,
        steps: int = 10,
        restarts: int = 0,
        draws: int = 1,
        source: GradientSource | None = None,
    ) -> None:
        super().__init__(epsilon, step_size, steps, restarts, draws, "margin", source)
