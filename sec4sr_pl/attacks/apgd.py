"""Auto-PGD: projected gradient descent that halves its own step, toward a margin or toward each likely decision."""

import dataclasses
import math

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.gradient import AnyLoss, attack_loss
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.source import GradientSource, scores_and_gradient, uniform
from sec4sr_pl.attacks.written import lasting

MOMENTUM = 0.75
"""Weight of the new step against the last one."""
SUFFICIENT = 0.75
"""Part of the steps between two checkpoints that must have lowered the loss for the step size to stay."""


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is reconsidered: 22 % of all, then in shrinking intervals down to 6 %."""
    places, width = [0.0, 0.22], 0.22
    while places[-1] < 1.0:
        width = max(width - 0.03, 0.06)
        places.append(places[-1] + width)
    return sorted({math.ceil(round(place * steps, 9)) for place in places[1:]})


class APGD(Attack):
    """Auto-PGD in the L-infinity ball, from a step of twice the radius, halved where progress stalls.

    Returns each utterance's iterate of the lowest margin. An utterance leaves as soon as its goal is achieved, with the
    objective's confidence and in every draw. Host synchronizations: a few a step.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        steps: gradients, for each start.
        restarts: 0 starts at the utterance itself; n >= 1 is n uniform random starts, for those still standing.
        draws: passes averaged at each step (EOT) against randomized recognizers.
        loss: "cross_entropy", "margin", "dlr" (at least three speakers), or None for cross-entropy in a closed set and
            margin otherwise.
        source: of the gradients, None: back-propagation.

    Raises:
        ValueError: a parameter outside its range.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", 2020, algorithm 1.
    """

    stops_at_success = True
    tasks = "all; `dlr`: closed sets of three or more"

    def __init__(
        self,
        epsilon: float = 0.002,
        steps: int = 100,
        restarts: int = 1,
        draws: int = 1,
        loss: AnyLoss | None = None,
        source: GradientSource | None = None,
    ) -> None:
        if not 0.0 <= epsilon <= 2.0:
            raise ValueError(f"Expected epsilon in [0, 2], got {epsilon}")
        if steps < 1 or restarts < 0 or draws < 1:
            raise ValueError(f"Expected steps >= 1, restarts >= 0, draws >= 1, got {steps}, {restarts}, {draws}")
        if loss not in (None, "cross_entropy", "margin", "dlr"):
            raise ValueError(f"Expected loss 'cross_entropy', 'margin', 'dlr' or None, got {loss!r}")
        self.epsilon, self.steps, self.restarts, self.draws = epsilon, steps, restarts, draws
        self.loss, self.source = loss, source

    @property
    def name(self) -> str:
        """APGD-100, and what differs from the defaults."""
        marks = [f"x{self.restarts}"] * (self.restarts != 1) + [f"EOT{self.draws}"] * (self.draws > 1)
        marks += [f"eps{self.epsilon:g}"] * (self.epsilon != 0.002) + [self.loss or ""]
        marks += [] if self.source is None else [self.source.name]
        return "-".join([type(self).__name__, str(self.steps), *filter(None, marks)])

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The iterate of the lowest margin over all starts."""
        best, lowest = waveforms.clone(), waveforms.new_full((len(waveforms),), torch.inf)
        rows = Rows.of(score, labels, lengths, generator, clean=waveforms)
        for _ in range(max(1, self.restarts)):
            if not rows.keep(lowest[rows.index] > -torch.inf):
                break
            self.descend(Rows(**vars(rows)), best, lowest, objective, objective, rows.labels)
        return best

    def descend(
        self, rows: Rows, best: Tensor, lowest: Tensor, goal: Objective, direction: Objective, aims: Tensor
    ) -> None:
        """One run of `rows` that minimizes the loss of `direction` for the labels `aims` until `goal` is achieved.

        `best`, (batch, time), and `lowest`, (batch,) margins of the goal, -inf once it is achieved, are brought up to
        date.
        """
        low, high = (rows.clean - self.epsilon).clamp_min(-1.0), (rows.clean + self.epsilon).clamp_max(1.0)
        start = rows.clean
        if self.restarts > 0:
            start = start + self.epsilon * (2.0 * uniform(start, rows.generators) - 1.0)
        rows.low, rows.high, rows.aims = low, high, aims
        rows.x = rows.previous = rows.anchor = torch.clamp(start, low, high)
        rows.step = rows.clean.new_full((len(rows.clean), 1), 2.0 * self.epsilon)
        rows.loss = rows.least = rows.least_before = torch.full_like(rows.step[:, 0], torch.inf)
        rows.slope = torch.zeros_like(rows.x)
        rows.lowered = torch.zeros_like(rows.index)
        rows.halved = torch.zeros_like(rows.index, dtype=torch.bool)
        places, last = checkpoints(self.steps), 0
        for step in range(self.steps + 1):  # the last evaluates only
            loss, gradient, margin, achieved = self.look(rows, goal, direction, gradient=step < self.steps)
            achieved = lasting(achieved, rows.x, rows, self.epsilon, goal, self.draws)
            rows.lowered = rows.lowered + (loss < rows.loss) if step else rows.lowered
            better = loss < rows.least
            rows.anchor = torch.where(better.unsqueeze(1), rows.x, rows.anchor)
            rows.slope = torch.where(better.unsqueeze(1), gradient, rows.slope)
            rows.loss, rows.least = loss, torch.where(better, loss, rows.least)
            margin = margin.masked_fill(achieved, -torch.inf)
            lower = margin < lowest[rows.index]
            chosen = rows.index[lower]
            best[chosen], lowest[chosen] = rows.x[lower], margin[lower]
            rows.gradient = gradient
            if step == self.steps or not rows.keep(~achieved):
                return
            if step in places and step > 0:
                stalled = rows.lowered < SUFFICIENT * (step - last)
                stalled |= ~rows.halved & (rows.least >= rows.least_before)
                self.restart(rows, stalled)
                last = step
            self.advance(rows, first=step == 0)

    @staticmethod
    def restart(rows: Rows, stalled: Tensor) -> None:
        """Halve the step of stalled rows and send them back to their best point."""
        column = stalled.unsqueeze(1)
        rows.step = torch.where(column, rows.step / 2.0, rows.step)
        rows.x, rows.gradient = torch.where(column, rows.anchor, rows.x), torch.where(column, rows.slope, rows.gradient)
        rows.loss = torch.where(stalled, rows.least, rows.loss)
        rows.halved, rows.least_before = stalled, rows.least
        rows.lowered = torch.zeros_like(rows.lowered)

    @staticmethod
    def advance(rows: Rows, first: bool) -> None:
        """One step with momentum."""
        target = torch.clamp(rows.x - rows.step * rows.gradient.sign(), rows.low, rows.high)
        weight = 1.0 if first else MOMENTUM
        moved = rows.x + weight * (target - rows.x) + (1.0 - weight) * (rows.x - rows.previous)
        rows.previous, rows.x = rows.x, torch.clamp(moved, rows.low, rows.high)

    def look(
        self, rows: Rows, goal: Objective, direction: Objective, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean over draws of loss, its gradient and the goal's margin; and success in every draw."""

        def loss(scores: Tensor) -> Tensor:
            return attack_loss(self.loss, direction, scores, rows.aims)

        if gradient:
            scores, slope = scores_and_gradient(
                self.source, rows.score, rows.x, rows.lengths, loss, rows.generators, self.draws
            )
        else:
            scores = torch.stack([rows.score(rows.x, rows.lengths) for _ in range(self.draws)])
            slope = torch.zeros_like(rows.x)
        losses = torch.stack([loss(draw) for draw in scores]).to(slope)
        margins = torch.stack([goal.loss(draw, rows.labels) for draw in scores]).to(slope)
        return losses.mean(0), slope, margins.mean(0), (margins < 0.0).all(0)


class TargetedAPGD(APGD):
    """Auto-PGD toward each of the decisions that are closest to the utterance's own, for those still standing.

    The decisions are speakers, and to be rejected where there is a threshold; a goal that is targeted already is the
    only one pursued.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        steps: gradients, for each candidate.
        candidates: how many, by their scores for the utterance itself.
        draws: passes averaged at each step (EOT) against randomized recognizers.
        loss: "margin" or, with at least three speakers in a closed set, "dlr".
        source: of the gradients, None: back-propagation.

    Raises:
        ValueError: a parameter outside its range.

    Source: Croce and Hein, 2020, section 4.1.
    """

    def __init__(
        self,
        epsilon: float = 0.002,
        steps: int = 100,
        candidates: int = 9,
        draws: int = 1,
        loss: AnyLoss | None = "margin",
        source: GradientSource | None = None,
    ) -> None:
        if candidates < 1:
            raise ValueError(f"Expected candidates >= 1, got {candidates}")
        super().__init__(epsilon, steps, 1, draws, loss, source)
        self.candidates = candidates

    @property
    def name(self) -> str:
        """TargetedAPGD-100, and what differs from the defaults."""
        marks = [super().name.replace("-margin", "")] + [f"top{self.candidates}"] * (self.candidates != 9)
        return "-".join(marks)

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The iterate of the lowest margin over all candidates."""
        best, lowest = waveforms.clone(), waveforms.new_full((len(waveforms),), torch.inf)
        rows = Rows.of(score, labels, lengths, generator, clean=waveforms)
        if not len(waveforms):
            return best
        candidates = labels.unsqueeze(1)
        if not objective.targeted:
            candidates = objective.others(score(waveforms, lengths), labels, self.candidates)
        direction = dataclasses.replace(objective, targeted=True)
        for aims in candidates.T:
            if not rows.keep(lowest[rows.index] > -torch.inf):
                break
            self.descend(Rows(**vars(rows)), best, lowest, objective, direction, aims[rows.index])
        return best
