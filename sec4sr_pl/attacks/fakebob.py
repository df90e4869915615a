"""FAKEBOB: the black-box attack on speaker recognizers, by estimated gradients with momentum."""

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.source import NES
from sec4sr_pl.attacks.written import lasting

PLATEAU = 5
"""Losses held to tell whether the last one is above the first."""
PATIENCE = 100
"""Steps after which a row must have made progress."""
PROGRESS = 0.9999
"""A row goes on while its loss falls below this part of what it was."""


class FAKEBOB(Attack):
    """Sign steps along NES gradients with momentum in the L-infinity ball, by scores alone.

    A row's step size halves, down to a floor, where the last of its five latest losses is above the first. It returns
    its waveform of the lowest margin, and leaves when its goal is achieved, with the objective's confidence and in
    every draw, or when its loss has not fallen for 100 steps. The threshold is the objective's, known or estimated.
    Directions are drawn where the generators live, by default on the CPU. Host synchronizations: a few a step.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        steps: at most.
        step_size: the first.
        smallest_step: floor of the step size.
        momentum: weight of the gradients before.
        samples: of `NES`, even.
        sigma: of `NES`, as a fraction of full scale.
        draws: passes averaged at each step (EOT) against randomized recognizers.
        queries: forward rows that may be spent on an utterance, without the final measurement; None: no cap.

    Raises:
        ValueError: a parameter outside its range, or a cap too low for one step.

    Source: Chen et al., "Who is real Bob? Adversarial attacks on speaker recognition systems", 2021, algorithm 1.
    """

    stops_at_success = True
    knowledge = "scores"

    def __init__(
        self,
        epsilon: float = 0.002,
        steps: int = 1_000,
        step_size: float = 0.001,
        smallest_step: float = 1e-6,
        momentum: float = 0.9,
        samples: int = 50,
        sigma: float = 0.001,
        draws: int = 1,
        queries: int | None = None,
    ) -> None:
        if not (0.0 <= epsilon <= 2.0 and 0.0 <= momentum < 1.0 and 0.0 < smallest_step <= step_size < torch.inf):
            raise ValueError(
                "Expected epsilon in [0, 2], momentum in [0, 1) and 0 < smallest_step <= step_size < inf, "
                f"got {epsilon}, {momentum}, {smallest_step} and {step_size}"
            )
        if steps < 1 or draws < 1:
            raise ValueError(f"Expected steps >= 1 and draws >= 1, got {steps} and {draws}")
        self.estimate = NES(samples, sigma)
        if queries is not None and queries < (samples + 4) * draws:
            raise ValueError(f"Expected at least {(samples + 4) * draws} queries, those of one step, got {queries}")
        self.epsilon, self.steps, self.step_size, self.smallest_step = epsilon, steps, step_size, smallest_step
        self.momentum, self.samples, self.sigma = momentum, samples, sigma
        self.draws, self.queries = draws, queries

    @property
    def name(self) -> str:
        """FAKEBOB-1000x50 by steps and samples, and what differs from the defaults."""
        marks = [f"EOT{self.draws}"] * (self.draws > 1) + [f"eps{self.epsilon:g}"] * (self.epsilon != 0.002)
        marks += [f"sigma{self.sigma:g}"] * (self.sigma != 0.001)
        marks += [f"step{self.step_size:g}"] * (self.step_size != 0.001)
        marks += [f"momentum{self.momentum:g}"] * (self.momentum != 0.9)
        marks += [f"floor{self.smallest_step:g}"] * (self.smallest_step != 1e-6)
        marks += [f"cap{self.queries}"] * (self.queries is not None)
        return "-".join(["FAKEBOB", f"{self.steps}x{self.samples}", *marks])

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The waveform of the lowest margin."""
        best = waveforms.clone()
        rows = self.start(score, waveforms, labels, lengths, generator)
        rows.lowest, rows.checked = torch.full_like(rows.step, torch.inf), torch.full_like(rows.step, torch.inf)
        for step in range(self.affordable + 1):  # the last evaluates only
            scores, gradient = self.look(rows, objective, gradient=step < self.affordable)
            margins = torch.stack([objective.loss(drawn, rows.labels) for drawn in scores]).to(gradient)
            loss, achieved = margins.mean(0), (margins < 0.0).all(0)
            achieved = lasting(achieved, rows.x, rows, self.epsilon, objective, self.draws)
            lower = (loss < rows.lowest) | achieved
            best[rows.index[lower]] = rows.x[lower]
            rows.lowest = torch.where(lower, loss, rows.lowest)
            going = ~achieved
            if step % PATIENCE == 0:
                going &= loss <= PROGRESS * rows.checked
                rows.checked = loss
            self.advance(rows, loss, gradient)
            if not rows.keep(going):
                break
        return best

    @property
    def affordable(self) -> int:
        """Steps within the cap of queries, and one evaluation; each may have to look at a success's file too."""
        if self.queries is None:
            return self.steps
        return min(self.steps, (self.queries - 2 * self.draws) // ((self.samples + 2) * self.draws))

    def start(
        self, score: CountedScore, waveforms: Tensor, labels: Tensor, lengths: Tensor, generator: Generators
    ) -> Rows:
        """All utterances, unchanged, with what a step needs to know."""
        return Rows.of(
            score,
            labels,
            lengths,
            generator,
            clean=waveforms,
            low=(waveforms - self.epsilon).clamp_min(-1.0),
            high=(waveforms + self.epsilon).clamp_max(1.0),
            x=waveforms,
            mean=torch.zeros_like(waveforms),
            step=waveforms.new_full((len(waveforms),), self.step_size),
            losses=waveforms.new_full((len(waveforms), PLATEAU), torch.inf),
        )

    def look(self, rows: Rows, objective: Objective, gradient: bool) -> tuple[list[Tensor], Tensor]:
        """Scores in each draw, and the mean over draws of the margin's estimated gradient, zero if not asked for."""
        drawn, slope = [], torch.zeros_like(rows.x)
        for _ in range(self.draws):
            if gradient:
                scores, found = self.estimate(
                    rows.score, rows.x, rows.lengths, lambda s: objective.loss(s, rows.labels), rows.generators
                )
                slope += found
            else:
                scores = rows.score(rows.x, rows.lengths)
            drawn.append(scores)
        return drawn, slope / self.draws

    def advance(self, rows: Rows, loss: Tensor, gradient: Tensor) -> None:
        """One step of each row; (rows,) losses decide about the size of the next ones."""
        rows.mean = self.momentum * rows.mean + (1.0 - self.momentum) * gradient
        rows.losses = torch.cat([rows.losses[:, 1:], loss.unsqueeze(1)], 1)
        risen = rows.losses[:, -1] > rows.losses[:, 0]  # never while fewer are held
        rows.step = torch.where(risen, (rows.step / 2.0).clamp_min(self.smallest_step), rows.step)
        rows.losses = rows.losses.masked_fill(risen.unsqueeze(1), torch.inf)
        rows.x = torch.clamp(rows.x - rows.step.unsqueeze(1) * rows.mean.sign(), rows.low, rows.high)
