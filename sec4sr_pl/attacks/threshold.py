"""The threshold of a black box, estimated from its decisions and scores, and attacks that have no other."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators, Score, borrowed, check
from sec4sr_pl.attacks.fakebob import FAKEBOB
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.types import REJECT, full_lengths


class ThresholdEstimate(NamedTuple):
    """What is known of a threshold."""

    threshold: float
    """Mean over the utterances that came to be accepted, NaN if there is none."""
    thresholds: Tensor
    """(batch,) the best score at which each was first accepted; NaN for one that never was, or was from the start."""
    queries: Tensor
    """(batch,) int64 forward rows spent on each."""


def estimate_threshold(
    score: Score,
    decide: Callable[[Tensor], Tensor],
    waveforms: Tensor,
    lengths: Tensor | None = None,
    attack: FAKEBOB | None = None,
    rise: float = 0.1,
    smallest_rise: float = 0.01,
    generator: Generators = None,
) -> ThresholdEstimate:
    """Raise the best score of rejected (batch, time) utterances until each is accepted; nothing else is known.

    Each utterance climbs by itself with the steps of `FAKEBOB`, towards candidates of the threshold: the first lies
    `rise` times the size of its first score above that score, and each one reached in vain is followed by the next, as
    far above, with the step size fresh. With `attack.draws` above 1, an utterance is accepted by the majority of
    decisions and its score is their mean. An estimate lies above a fixed threshold, by at most what one step gains.

    Args:
        score: a recognizer, or any function (waveforms, lengths) -> scores.
        decide: (batch, speakers) scores -> (batch,) decisions, e.g. `Recognizer.decide`.
        waveforms: (batch, time) in [-1, 1]; those that are accepted as they are tell nothing.
        lengths: (batch,) valid samples; None: all.
        attack: the steps, draws and cap of queries; default: FAKEBOB in no ball.
        rise: between candidates, as a part of the first score.
        smallest_rise: between candidates at least, in units of the scores.
        generator: as in `Attack`.

    Raises:
        ValueError: a rise that is not above 0, or what an attack refuses.

    Source: Chen et al., "Who is real Bob? Adversarial attacks on speaker recognition systems", 2021, algorithm 2.
    """
    if not (rise > 0.0 and smallest_rise > 0.0):
        raise ValueError(f"Expected rise > 0 and smallest_rise > 0, got {rise} and {smallest_rise}")
    attack = FAKEBOB(epsilon=2.0) if attack is None else attack
    objective = Objective(threshold=0.0)  # of a rejected label: the lower its loss, the higher the best score
    with torch.inference_mode(False), torch.no_grad(), borrowed(score) as fast:
        original = waveforms.detach().clone()
        labels = torch.full((len(original),), REJECT, device=original.device)
        check(original, labels, lengths, values=True)
        counted = CountedScore(fast, original, masked=lengths is not None)
        rows = attack.start(
            counted, original, labels, full_lengths(original) if lengths is None else lengths.clone(), generator
        )
        thresholds = torch.full_like(rows.step, math.nan)
        for step in range(attack.affordable + 1 if len(original) else 0):
            scores, gradient = attack.look(rows, objective, gradient=step < attack.affordable)
            best = torch.stack([drawn.max(1).values for drawn in scores]).to(gradient).mean(0)
            votes = torch.stack([decide(drawn) != REJECT for drawn in scores])
            accepted = votes.double().mean(0) > 0.5
            if step == 0:
                rows.rise = (rise * best.abs()).clamp_min(smallest_rise)
                rows.candidate = best + rows.rise
            else:
                thresholds[rows.index[accepted]] = best[accepted]
            attack.advance(rows, -best, gradient)
            passed = best >= rows.candidate
            rows.candidate = torch.where(passed, best + rows.rise, rows.candidate)
            rows.step = rows.step.masked_fill(passed, attack.step_size)
            rows.losses = rows.losses.masked_fill(passed.unsqueeze(1), torch.inf)
            if not rows.keep(~accepted):
                break
    return ThresholdEstimate(float(thresholds.nanmean()), thresholds, counted.queries)


class AssumedThreshold(Attack):
    """An attack on a system whose threshold it does not know: it works with another, and the system's own judges.

    Args:
        attack: e.g. FAKEBOB.
        threshold: what it takes for the system's, e.g. that of `estimate_threshold`.

    Where the goal is to be rejected, assume less than the estimate, which errs upward: the attack stops at what it
    takes for success.

    Raises:
        ValueError: a threshold that is not finite, or, when it is called, a closed set.
    """

    distance, knowledge, tasks = "of its attack", "of its attack, without the threshold", "SV, OSI"
    returns, randomized = "as its attack", "`draws` of its attack"

    def __init__(self, attack: Attack, threshold: float) -> None:
        if not math.isfinite(threshold):
            raise ValueError(f"Expected a finite threshold, got {threshold}")
        self.attack, self.threshold = attack, threshold
        self.epsilon = attack.epsilon

    @property
    def name(self) -> str:
        """FAKEBOB-1000x50-assumes0.31."""
        return f"{self.attack.name}-assumes{self.threshold:g}"

    @property
    def gradient_draws(self) -> int:
        """Those of the attack."""
        return self.attack.gradient_draws

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """What the attack finds."""
        if objective.threshold == -math.inf:
            raise ValueError("Expected a system that can reject, got a closed set: it has no threshold to assume")
        assumed = dataclasses.replace(objective, threshold=self.threshold)
        return self.attack.perturb(score, waveforms, labels, lengths, assumed, generator)

    def present(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As the attack does."""
        return self.attack.present(waveforms, lengths)
