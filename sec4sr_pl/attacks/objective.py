"""What an attack wants, as a loss on scores: the tasks are thresholds, not branches."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.types import REJECT


@dataclass(frozen=True)
class Objective:
    """The goal of an attack.

    Untargeted, `labels` are the decisions to leave; targeted, the decisions to reach. `REJECT` is a decision wherever
    there is a threshold.

    Args:
        threshold: the system's; -inf is a closed set.
        targeted: reach the label instead of leaving it.
        confidence: margin by which the goal must be exceeded for the loss to be negative.
    """

    threshold: float = -math.inf
    targeted: bool = False
    confidence: float = 0.0

    def check(self, labels: Tensor, speakers: int) -> None:
        """Refuse labels that have no meaning.

        Raises:
            ValueError: a label outside [REJECT, speakers), REJECT in a closed set, or not (batch,) int64.
        """
        if labels.dim() != 1 or labels.dtype != torch.int64:
            raise ValueError(f"Expected (batch,) int64 labels, got {tuple(labels.shape)} {labels.dtype}")
        lowest = 0 if self.threshold == -math.inf else REJECT
        if labels.numel() and not bool(((labels >= lowest) & (labels < speakers)).all()):
            raise ValueError(
                f"Expected labels from {lowest} to {speakers - 1}, got {labels.min().item()} to {labels.max().item()}"
                + (": in a closed set nobody is rejected, leave such utterances out" if lowest == 0 else "")
            )

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The margin, (batch,), always to be minimized: below zero exactly when achieved with confidence.

        Args:
            scores: (batch, speakers).
            labels: (batch,), index or `REJECT`.
        """
        enrolled = labels != REJECT
        own = functional.one_hot(labels.clamp_min(0), scores.shape[1]).bool()
        label_score = scores.masked_fill(~own, -torch.inf).max(dim=1).values
        best_other = scores.masked_fill(own, -torch.inf).max(dim=1).values
        best = scores.max(dim=1).values
        if self.targeted:
            reach = best_other.clamp_min(self.threshold) - label_score
            reject = best - self.threshold
        else:
            confused = label_score.clamp_min(self.threshold) - best_other
            reach = torch.minimum(best - self.threshold, confused)
            reject = self.threshold - best
        return torch.where(enrolled, reach, reject) + self.confidence

    def achieved(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Whether the decision on (batch, speakers) scores is the wanted one, (batch,) bool; ignores the confidence."""
        best, index = scores.max(dim=1)
        decisions = torch.where(best > self.threshold, index, REJECT)
        return decisions == labels if self.targeted else decisions != labels
