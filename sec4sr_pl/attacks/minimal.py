"""The fast minimum-norm attack: the smallest change, without a search for constants."""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.source import GradientSource, scores_and_gradient


class FMN(Attack):
    """Fast minimum-norm attack, norm L2 or L-infinity, without a ball of its own.

    Steps along the normalized gradient of the margin within a radius that shrinks while the goal is achieved and grows
    while it is not; until it was achieved for the first time, the radius is where the linearized margin is zero. Step
    and rate fall along a cosine. Keeps the smallest change that achieves the goal, with its confidence and in every
    draw; where there is none, the utterance comes back as it was, and one that needs no change leaves at once.
    Host synchronizations: a few a step.

    Args:
        norm: "l2" or "linf".
        confidence: margin by which the goal must be exceeded; it takes the place of the objective's.
        steps: gradients.
        step_size: L2 length of the first step.
        rate: part by which the radius changes at first.
        draws: passes averaged at each step (EOT) against randomized recognizers.
        source: of the gradients, None: back-propagation.
        enough: an utterance leaves with a change of this size or less.

    Raises:
        ValueError: a parameter outside its range.

    Source: Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints", 2021, algorithm 1.
    """

    epsilon = math.inf
    distance, bounded, returns = "L2 or L∞", False, "smallest success"

    def __init__(
        self,
        norm: Literal["l2", "linf"] = "l2",
        confidence: float = 0.0,
        steps: int = 100,
        step_size: float = 1.0,
        rate: float = 0.05,
        draws: int = 1,
        source: GradientSource | None = None,
        enough: float = 0.0,
    ) -> None:
        if norm not in ("l2", "linf"):
            raise ValueError(f"Expected norm 'l2' or 'linf', got {norm!r}")
        if steps < 1 or draws < 1:
            raise ValueError(f"Expected steps >= 1 and draws >= 1, got {steps} and {draws}")
        if not (math.isfinite(confidence) and 0.0 < step_size < math.inf and 0.0 < rate < 1.0 and enough >= 0.0):
            raise ValueError(
                "Expected a finite confidence, a finite step_size > 0, rate in (0, 1) and enough >= 0, "
                f"got {confidence}, {step_size}, {rate} and {enough}"
            )
        self.norm, self.confidence, self.steps = norm, confidence, steps
        self.step_size, self.rate, self.draws, self.source, self.enough = step_size, rate, draws, source, enough

    @property
    def name(self) -> str:
        """FMN-l2-0-100 by norm, confidence and steps, and what differs from the defaults."""
        marks = [f"step{self.step_size:g}"] * (self.step_size != 1.0) + [f"rate{self.rate:g}"] * (self.rate != 0.05)
        marks += [f"enough{self.enough:g}"] * (self.enough > 0.0)
        marks += [f"EOT{self.draws}"] * (self.draws > 1) + ([] if self.source is None else [self.source.name])
        return "-".join(["FMN", self.norm, f"{self.confidence:g}", str(self.steps), *marks])

    def size(self, change: Tensor) -> Tensor:
        """The norm of each row."""
        size: Tensor = torch.linalg.vector_norm(change, 2.0 if self.norm == "l2" else math.inf, dim=1)
        return size

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The closest achieving waveform of each utterance, or the utterance itself."""
        batch = len(waveforms)
        objective = dataclasses.replace(objective, confidence=self.confidence)
        best, smallest = waveforms.clone(), waveforms.new_full((batch,), torch.inf)
        rows = Rows.of(
            score,
            labels,
            lengths,
            generator,
            clean=waveforms,
            change=torch.zeros_like(waveforms),
            radius=torch.full_like(smallest, torch.inf),
        )
        for step in range(self.steps + 1 if batch else 0):  # the last evaluates only
            decay = 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
            margin, gradient, achieved = self.look(rows, objective)
            size = self.size(rows.change)
            closer = achieved & (size < smallest[rows.index])
            chosen = rows.index[closer]
            best[chosen], smallest[chosen] = (rows.clean + rows.change)[closer], size[closer]
            found = smallest[rows.index].isfinite()
            rate = self.rate * (0.01 + 0.99 * decay)
            steepness = gradient.norm(dim=1) if self.norm == "l2" else gradient.abs().sum(1)
            linear = size + margin.clamp_min(0.0) / steepness.clamp_min(1e-12)
            outside = torch.where(found, rows.radius, linear) * (1.0 + rate)  # beyond the border
            inside = torch.minimum(rows.radius * (1.0 - rate), smallest[rows.index])
            rows.radius = torch.where(achieved, inside, outside)
            length = self.step_size * (0.01 + 0.99 * decay)
            moved = rows.change - length * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
            rows.change = (rows.clean + self.project(moved, rows.radius)).clamp(-1.0, 1.0) - rows.clean
            if not rows.keep(smallest[rows.index] > self.enough):
                break
        return best

    def project(self, change: Tensor, radius: Tensor) -> Tensor:
        """The change brought into balls of (rows,) radii."""
        bound = radius.unsqueeze(1)
        if self.norm == "linf":
            return torch.clamp(change, -bound, bound)
        return change * (bound / self.size(change).unsqueeze(1).clamp_min(1e-12)).clamp_max(1.0)

    def look(self, rows: Rows, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over draws of the margin and of its gradient, and success in every draw, each by row."""
        scores, slope = scores_and_gradient(
            self.source,
            rows.score,
            rows.clean + rows.change,
            rows.lengths,
            lambda s: objective.loss(s, rows.labels),
            rows.generators,
            self.draws,
        )
        margins = torch.stack([objective.loss(draw, rows.labels) for draw in scores]).to(slope)
        return margins.mean(0), slope, (margins < 0.0).all(0)
