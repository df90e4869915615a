"""The smallest change in L2 that Carlini and Wagner's optimization finds."""

import dataclasses
import math

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.source import GradientSource, scores_and_gradient

INSIDE = 0.999999
"""Keeps samples off full scale, where tanh has no inverse."""
PROGRESS = 0.9999
"""A descent goes on while its loss falls below this part of what it was."""
SETTLED = 50
"""Steps in which Adam's first steps, of full length whatever the gradient, have been taken back."""
LARGEST = 1e10
"""Upper bound of the search for the constant c."""
FALL = 0.01
"""Part of the learning rate that is left at the end of a descent: Adam's steps keep their length around a minimum."""


class CW2(Attack):
    """Carlini and Wagner's attack: the smallest change, norm L2, without a ball.

    Minimizes |x' - x|^2 + c max(0, margin) over w with x' = tanh(w + atanh(0.999999 x)) by Adam, fresh for each c, and
    searches for c by bisection. Once a c has achieved the goal, the learning rate of each further descent falls to a
    hundredth (the paper's stays). Keeps the smallest change of all steps that achieves the goal, with its confidence
    and in every draw; where there is none, the utterance comes back as it was. Each utterance has its own c, descent
    and end: one whose descent stalls (compared every tenth of `steps`) waits for the next c, one that needs no change
    leaves at once. Host synchronizations: a few a step.

    Args:
        confidence: margin by which the goal must be exceeded; it takes the place of the objective's.
        steps: of Adam for each c.
        search_steps: values of c.
        learning_rate: of Adam at the start of each descent, in the space of w.
        initial_const: first c.
        draws: passes averaged at each step (EOT) against randomized recognizers.
        source: of the gradients, None: back-propagation.

    Raises:
        ValueError: a parameter outside its range.

    Source: Carlini and Wagner, "Towards evaluating the robustness of neural networks", 2017, section VI.A.
    """

    epsilon = math.inf
    distance, bounded, returns = "L2", False, "smallest success"

    def __init__(
        self,
        confidence: float = 0.0,
        steps: int = 10_000,
        search_steps: int = 9,
        learning_rate: float = 0.01,
        initial_const: float = 1e-3,
        draws: int = 1,
        source: GradientSource | None = None,
    ) -> None:
        if not (math.isfinite(confidence) and 0.0 < learning_rate < math.inf and 0.0 < initial_const <= LARGEST):
            raise ValueError(
                "Expected a finite confidence, a finite learning_rate > 0 and initial_const in (0, 1e10], "
                f"got {confidence}, {learning_rate} and {initial_const}"
            )
        if steps < 1 or search_steps < 1 or draws < 1:
            raise ValueError(
                f"Expected steps >= 1, search_steps >= 1, draws >= 1, got {steps}, {search_steps}, {draws}"
            )
        self.confidence, self.steps, self.search_steps = confidence, steps, search_steps
        self.learning_rate, self.initial_const, self.draws, self.source = learning_rate, initial_const, draws, source

    @property
    def patience(self) -> int:
        """Steps between two looks at whether a descent stalls: a tenth of all, but beyond Adam's first overshoot."""
        return max(SETTLED, math.ceil(self.steps / 10))

    @property
    def name(self) -> str:
        """CW2-0 by its confidence, the way papers write it, and what differs from the paper's parameters."""
        marks = [f"{self.steps}x{self.search_steps}"] * ((self.steps, self.search_steps) != (10_000, 9))
        marks += [f"lr{self.learning_rate:g}"] * (self.learning_rate != 0.01)
        marks += [f"c{self.initial_const:g}"] * (self.initial_const != 1e-3)
        marks += [f"EOT{self.draws}"] * (self.draws > 1) + ([] if self.source is None else [self.source.name])
        return "-".join(["CW2", f"{self.confidence:g}", *marks])

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
        const, low = waveforms.new_full((batch,), self.initial_const), waveforms.new_zeros(batch)
        high = torch.full_like(low, LARGEST)
        everyone = Rows.of(score, labels, lengths, generator, clean=waveforms)
        for _ in range(self.search_steps):
            if not everyone.keep(smallest[everyone.index] > 0.0):
                break
            found = self.descend(everyone, const, best, smallest, objective)
            high, low = torch.where(found, high.minimum(const), high), torch.where(found, low, low.maximum(const))
            const = torch.where(high < 0.1 * LARGEST, (low + high) / 2, torch.where(found, const, 10.0 * const))
        return best

    def descend(self, everyone: Rows, const: Tensor, best: Tensor, smallest: Tensor, objective: Objective) -> Tensor:
        """One descent with the constants of the whole batch, (batch,); whether it achieved the goal, (batch,).

        `best` and `smallest`, the squared changes, are brought up to date.
        """
        rows = Rows(**vars(everyone))
        found = torch.zeros_like(const, dtype=torch.bool)
        rows.const = const[rows.index]
        rows.origin = torch.atanh(INSIDE * rows.clean)
        rows.w, rows.mean, rows.square = (torch.zeros_like(rows.clean) for _ in range(3))
        rows.checked = torch.full_like(rows.const, torch.inf)
        rows.fall = torch.where(smallest[rows.index].isfinite(), FALL, 1.0)
        for step in range(self.steps + 1):  # the last evaluates only
            x = torch.tanh(rows.w + rows.origin)
            margin, gradient, achieved = self.look(rows, x, objective)
            squared = (x - rows.clean).square().sum(1)
            unchanged = achieved if step == 0 else torch.zeros_like(achieved)  # INSIDE is no change
            squared = squared.masked_fill(unchanged, 0.0)
            closer = achieved & (squared < smallest[rows.index])
            chosen = rows.index[closer]
            best[chosen], smallest[chosen] = torch.where(unchanged.unsqueeze(1), rows.clean, x)[closer], squared[closer]
            found[rows.index] |= achieved
            going = ~unchanged
            if step and step % self.patience == 0:  # at 0 stands the utterance itself, which Adam must leave first
                loss = squared + rows.const * margin
                going &= loss <= PROGRESS * rows.checked
                rows.checked = loss
            slope = (2.0 * (x - rows.clean) + rows.const.unsqueeze(1) * gradient) * (1.0 - x.square())
            rows.mean = 0.9 * rows.mean + 0.1 * slope
            rows.square = 0.999 * rows.square + 0.001 * slope.square()
            update = rows.mean / (1.0 - 0.9 ** (step + 1))
            update /= (rows.square / (1.0 - 0.999 ** (step + 1))).sqrt() + 1e-8
            rows.w = rows.w - self.learning_rate * (rows.fall ** (step / self.steps)).unsqueeze(1) * update
            if not rows.keep(going):
                break
        return found

    def look(self, rows: Rows, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over draws of max(0, margin), its gradient, and success in every draw, each by row."""
        scores, slope = scores_and_gradient(
            self.source,
            rows.score,
            x,
            rows.lengths,
            lambda s: objective.loss(s, rows.labels).clamp_min(0.0),
            rows.generators,
            self.draws,
        )
        margins = torch.stack([objective.loss(draw, rows.labels) for draw in scores]).to(slope)
        return margins.clamp_min(0.0).mean(0), slope, (margins < 0.0).all(0)
