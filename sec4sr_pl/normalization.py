"""Score normalization: scores of different speakers and utterances brought to one scale by a cohort of strangers."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sec4sr_pl.scoring import EnrolledScorer, Scorer

Kind = Literal["z", "t", "s"]


def standardize(scores: Tensor, cohort_scores: Tensor, top: int | None = None) -> Tensor:
    """Scores in standard deviations from the mean of the cohort's.

    Args:
        scores: (..., 1) or of a shape that fits the rows of `cohort_scores`.
        cohort_scores: (..., cohort).
        top: count the highest of them alone (adaptive normalization); None: all.
    """
    if top is not None:
        cohort_scores = cohort_scores.topk(min(top, cohort_scores.shape[-1]), dim=-1).values
    variance, mean = torch.var_mean(cohort_scores, -1, correction=0, keepdim=True)
    return (scores - mean) * variance.clamp_min(1e-12).rsqrt()


class Normalized(EnrolledScorer):
    """The scores of another scorer, normalized by those of a cohort of people who are neither enrolled nor tested.

    With a speaker's scores for the cohort S_e, and an utterance's scores against the cohort S_t: z-norm is the score's
    distance from the mean of S_e, in their standard deviations; t-norm that from S_t; s-norm the mean of both. With
    `top`, the statistics are of the highest scores alone: of S_e for the speaker, of S_t for the utterance (adaptive
    s-norm 1). The cohort travels in the checkpoint. Gradients go through both scores and statistics.

    Args:
        scorer: e.g. `Cosine`; its models are those that are enrolled.
        kind: "z", "t" or "s".
        top: size of the part of the cohort that counts; None: all.
        cohort_size: for a checkpoint, whose weights follow.

    Raises:
        ValueError: another kind, or a top below 2.

    Source: Matejka et al., "Analysis of score normalization in multilingual speaker recognition", 2017.
    """

    cohort: Tensor
    """(cohort, embedding_size)."""

    def __init__(self, scorer: EnrolledScorer, kind: Kind = "s", top: int | None = None, cohort_size: int = 0) -> None:
        Scorer.__init__(self, scorer.speakers)  # the models are the scorer's
        if kind not in ("z", "t", "s") or (top is not None and top < 2):
            raise ValueError(f"Expected kind 'z', 't' or 's' and a top of at least 2, got {kind!r} and {top}")
        self.scorer, self.kind, self.top, self.cohort_size = scorer, kind, top, cohort_size
        self.embedding_size, self.trained_on = scorer.embedding_size, scorer.trained_on
        self.register_buffer("cohort", torch.zeros(cohort_size, scorer.embedding_size))

    def take_cohort(self, embeddings: Tensor) -> None:
        """Normalize by these embeddings, (cohort, embedding_size), from now on; the threshold is -inf until calibrated.

        Raises:
            ValueError: fewer than two.
        """
        if embeddings.dim() != 2 or len(embeddings) < 2:
            raise ValueError(f"Expected (cohort, embedding_size) embeddings of two or more, got {embeddings.shape}")
        self.cohort_size = len(embeddings)
        self.cohort = embeddings.detach().to(self.cohort)
        self.threshold.fill_(-torch.inf)

    def enroll(self, embeddings: Tensor, speakers: Sequence[str]) -> None:
        """As the scorer does."""
        self.scorer.enroll(embeddings, speakers)
        self.speakers, self.embedding_size = self.scorer.speakers, self.scorer.embedding_size
        self.threshold.fill_(-torch.inf)

    def only(self, speaker: str) -> "Normalized":
        """A copy that knows one of the speakers; with the same threshold and cohort."""
        one = copy.deepcopy(self)
        one.scorer = self.scorer.only(speaker)
        one.speakers = one.scorer.speakers
        return one

    def model(self, embeddings: Tensor) -> Tensor:
        """As the scorer does."""
        return self.scorer.model(embeddings)

    def compare(self, embeddings: Tensor) -> Tensor:
        """Normalized scores.

        Raises:
            ValueError: no cohort.
        """
        if not self.cohort_size:
            raise ValueError(
                "Normalized has no cohort: call take_cohort(embeddings), or name its data by --cohort of "
                "python -m sec4sr_pl.enrollment"
            )
        scores, normalized = self.scorer(embeddings), []
        if self.kind in ("z", "s"):
            normalized.append(standardize(scores.unsqueeze(-1), self.scorer(self.cohort).T, self.top).squeeze(-1))
        if self.kind in ("t", "s"):
            normalized.append(standardize(scores, self._against_cohort(embeddings), self.top))
        return torch.stack(normalized).mean(0)

    def _against_cohort(self, embeddings: Tensor) -> Tensor:
        """(batch, cohort) scores of utterances against models of one utterance of each of the cohort."""
        against = copy.copy(self.scorer)
        models = torch.vmap(self.scorer.model)(self.cohort.unsqueeze(1))
        against._buffers = {**self.scorer._buffers, "models": models}
        return against.compare(embeddings)
