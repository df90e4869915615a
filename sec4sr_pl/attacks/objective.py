"""What an attack wants, as a loss on scores: the tasks are thresholds, not branches."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.types import REJECT, single_precision

CERTAIN = 1e6
"""The score that stands for one that is not finite, on the attack's side: beyond any other."""


@dataclass(frozen=True)
class Objective:
    """The goal of an attack.

    Untargeted, `labels` are the decisions to leave; targeted, the decisions to reach. `REJECT` is a decision wherever
    there is a threshold.

    Args:
        threshold: the system's; -inf is a closed set.
        targeted: reach the label instead of leaving it.
        confidence: margin by which the goal must be exceeded for the loss to be negative.
        nonfinite_succeeds: scores of NaN or infinity achieve the goal, by far; else they are refused where an attack
            or a campaign measures.

    Raises:
        ValueError: a threshold of NaN, or a confidence that is not finite.
    """

    threshold: float = -math.inf
    targeted: bool = False
    confidence: float = 0.0
    nonfinite_succeeds: bool = False

    def __post_init__(self) -> None:
        """Refuse what no score can be compared with."""
        if math.isnan(self.threshold) or not math.isfinite(self.confidence):
            raise ValueError(
                f"Expected a threshold and a finite confidence, got {self.threshold} and {self.confidence}"
            )

    def decisions(self, label: int, speakers: int) -> list[int]:
        """What can be decided on an utterance with this label."""
        return [*range(speakers), *([] if self.threshold == -math.inf else [REJECT])]

    def lowest(self, speakers: int) -> int:
        """The lowest label that has a meaning."""
        return 0 if self.threshold == -math.inf else REJECT

    def check(self, labels: Tensor, speakers: int) -> None:
        """Refuse labels that have no meaning.

        Raises:
            ValueError: a label outside [lowest, speakers), or not (batch,) int64.
        """
        if labels.dim() != 1 or labels.dtype != torch.int64:
            raise ValueError(f"Expected (batch,) int64 labels, got {tuple(labels.shape)} {labels.dtype}")
        lowest = self.lowest(speakers)
        if labels.numel() and not bool(((labels >= lowest) & (labels < speakers)).all()):
            raise ValueError(
                f"Expected labels from {lowest} to {speakers - 1}, got {labels.min().item()} to {labels.max().item()}"
                + (": in a closed set nobody is rejected, leave such utterances out" if lowest == 0 else "")
            )

    def judged(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The (batch, speakers) scores, no less precise than float32.

        Where `nonfinite_succeeds`, rows that are not finite become the wanted ones.
        """
        scores = single_precision(scores)
        if not self.nonfinite_succeeds:
            return scores
        wanted = labels if self.targeted else self.others(torch.zeros_like(scores), labels, 1).squeeze(1)
        accepted = functional.one_hot(wanted.clamp_min(0), scores.shape[1]).bool() & (wanted >= 0).unsqueeze(1)
        certain = torch.full_like(scores, -CERTAIN).masked_fill(accepted, CERTAIN)
        return torch.where(scores.isfinite().all(1, keepdim=True), scores, certain)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The margin, (batch,), always to be minimized: below zero exactly when achieved with confidence.

        Args:
            scores: (batch, speakers).
            labels: (batch,), index or `REJECT`.
        """
        scores = self.judged(scores, labels)
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

    def decide(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The decision on each row of (batch, speakers) scores, (batch,), of the kind of its label."""
        best, index = self.judged(scores, labels).max(dim=1)
        return torch.where(best > self.threshold, index, REJECT)

    def achieved(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Whether the decision on (batch, speakers) scores is the wanted one, (batch,) bool; ignores the confidence."""
        return (self.decide(scores, labels) == labels) == self.targeted

    def others(self, scores: Tensor, labels: Tensor, count: int) -> Tensor:
        """The best-scoring decisions other than the label, (batch, at most count); a rejection scores the threshold.

        Raises:
            ValueError: a closed set of one speaker, where there is no other decision.
        """
        speakers = scores.shape[1]
        if self.threshold > -math.inf:
            scores = torch.cat([scores, torch.full_like(scores[:, :1], self.threshold)], 1)
            labels = torch.where(labels == REJECT, speakers, labels)
        if scores.shape[1] < 2:
            raise ValueError("Expected a threshold or at least two speakers, got a closed set of one")
        remaining = scores.scatter(1, labels.unsqueeze(1), -torch.inf)
        chosen = remaining.topk(min(count, scores.shape[1] - 1), dim=1).indices
        return torch.where(chosen == speakers, REJECT, chosen)


@dataclass(frozen=True)
class Claim(Objective):
    """The goal of an attack on verification, where each utterance claims to be one of the speakers.

    A label carries the claim: `speaker` where the claim is accepted, its complement `~speaker` where it is rejected;
    of one speaker these are 0 and `REJECT`. Only the score of the claimed speaker counts.

    Raises:
        ValueError: no threshold.
    """

    def __post_init__(self) -> None:
        """Refuse to decide without a threshold."""
        super().__post_init__()
        if self.threshold == -math.inf:
            raise ValueError("Expected a threshold, by which claims are decided, got -inf")

    def decisions(self, label: int, speakers: int) -> list[int]:
        """The claimed speaker, or its complement."""
        return [max(label, ~label), min(label, ~label)]

    def lowest(self, speakers: int) -> int:
        """The claim to be the last speaker, rejected."""
        return ~(speakers - 1)

    def claimed(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The claimed speaker of each row, and its score, (batch, 1) each."""
        speakers = torch.maximum(labels, ~labels).unsqueeze(1)
        return speakers, scores.gather(1, speakers)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The margin of the claimed speaker's score from the threshold, (batch,)."""
        own = self.claimed(self.judged(scores, labels), labels)[1]
        return super().loss(own, labels.clamp(REJECT, 0))

    def decide(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The claimed speaker, (batch,), or its complement."""
        speakers, own = self.claimed(self.judged(scores, labels), labels)
        return torch.where(own > self.threshold, speakers, ~speakers).squeeze(1)

    def others(self, scores: Tensor, labels: Tensor, count: int) -> Tensor:
        """The one other decision, (batch, 1)."""
        return ~labels.unsqueeze(1)
