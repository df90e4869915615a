"""Score normalization: scores of different speakers and utterances brought to one scale by a cohort of strangers."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sec4sr_pl.scoring import EnrolledScorer, Scorer

Kind = Literal["z", "t", "s"]


def moments(cohort_scores: Tensor, top: int | None = None) -> tuple[Tensor, Tensor]:
    """(..., 1) mean and inverse standard deviation of the cohort's scores.

    Args:
        cohort_scores: (..., cohort).
        top: count the highest of them alone (adaptive normalization); None: all.
    """
    if top is not None:
        cohort_scores = cohort_scores.topk(min(top, cohort_scores.shape[-1]), dim=-1).values
    variance, mean = torch.var_mean(cohort_scores, -1, correction=0, keepdim=True)
    return mean, variance.clamp_min(1e-12).rsqrt()


def prepare_loaded(module: "Normalized", keys: object) -> None:
    """What `load_state_dict` calls at its end."""
    module.prepare()


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
        cohort_speakers: names of those in the cohort, where they are known.

    Raises:
        ValueError: another kind, or a top below 2.

    Source: Matejka et al., "Analysis of score normalization in multilingual speaker recognition", 2017.
    """

    cohort: Tensor
    """(cohort, embedding_size)."""
    cohort_models: Tensor
    """(cohort, ...): one of each utterance of the cohort."""
    speaker_mean: Tensor
    """(speakers,) of the scores that the cohort has for a speaker."""
    speaker_scale: Tensor
    """(speakers,) inverse standard deviation of them."""

    def __init__(
        self,
        scorer: EnrolledScorer,
        kind: Kind = "s",
        top: int | None = None,
        cohort_size: int = 0,
        cohort_speakers: Sequence[str] = (),
    ) -> None:
        Scorer.__init__(self, scorer.speakers)  # the models are the scorer's
        if kind not in ("z", "t", "s") or (top is not None and top < 2):
            raise ValueError(f"Expected kind 'z', 't' or 's' and a top of at least 2, got {kind!r} and {top}")
        self.scorer, self.kind, self.top, self.cohort_size = scorer, kind, top, cohort_size
        self.cohort_speakers, self.embedding_size = cohort_speakers, scorer.embedding_size
        self.register_buffer("cohort", torch.zeros(cohort_size, scorer.embedding_size))
        for name in ("cohort_models", "speaker_mean", "speaker_scale"):  # they follow from cohort and models
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.register_load_state_dict_post_hook(prepare_loaded)  # type: ignore[no-untyped-call]

    @property
    def trained_on(self) -> Sequence[str]:
        """Those of the scorer, in whose description they travel."""
        return self.scorer.trained_on

    @trained_on.setter
    def trained_on(self, names: Sequence[str]) -> None:
        self.scorer.trained_on = names

    @property
    def calibrated_on(self) -> Sequence[str]:
        """As `trained_on`."""
        return self.scorer.calibrated_on

    @calibrated_on.setter
    def calibrated_on(self, names: Sequence[str]) -> None:
        self.scorer.calibrated_on = names

    @property
    def least(self) -> int:
        """Utterances of the smallest cohort."""
        return self.top or 2

    def check_trained(self) -> None:
        """As the scorer does."""
        self.scorer.check_trained()

    def take_cohort(self, embeddings: Tensor, speakers: Sequence[str] = ()) -> None:
        """Normalize by a cohort from now on; the threshold is -inf until calibrated.

        Args:
            embeddings: (cohort, embedding_size).
            speakers: names of those who speak, where they are known.

        Raises:
            ValueError: fewer than two, or than `top`; or embeddings that are not finite.
        """
        if embeddings.dim() != 2 or len(embeddings) < self.least:
            raise ValueError(
                f"Expected (cohort, embedding_size) embeddings of {self.least} or more, got {tuple(embeddings.shape)}"
            )
        if not embeddings.isfinite().all():
            raise ValueError("Expected finite embeddings of the cohort, got others")
        self.cohort_size, self.cohort_speakers = len(embeddings), sorted(set(speakers))
        self.cohort = embeddings.detach().to(self.cohort)
        self.threshold.fill_(-torch.inf)
        self.calibrated_on = ()
        self.prepare()

    def enroll(self, embeddings: Tensor, speakers: Sequence[str]) -> None:
        """As the scorer does."""
        self.scorer.enroll(embeddings, speakers)
        self.speakers, self.embedding_size = self.scorer.speakers, self.scorer.embedding_size
        self.threshold.fill_(-torch.inf)
        self.prepare()

    def only(self, speaker: str) -> "Normalized":
        """A copy that knows one of the speakers; with the same threshold and cohort."""
        one = copy.deepcopy(self)
        one.scorer = self.scorer.only(speaker)
        one.speakers = one.scorer.speakers
        one.prepare()
        return one

    @torch.no_grad()
    def prepare(self) -> None:
        """Compute what does not depend on the utterance, as far as cohort and speakers are there."""
        if self.cohort_size:
            self.cohort_models = torch.vmap(self.scorer.model)(self.cohort.unsqueeze(1))
        if self.cohort_size and self.scorer.speakers:
            parts = torch.split(self.scorer.models, 256)  # of speakers, all scores would be many
            found = [moments(self.scorer.against(self.cohort, models).T, self.top) for models in parts]
            self.speaker_mean, self.speaker_scale = (torch.cat(part).squeeze(1) for part in zip(*found, strict=True))

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
        return self._normalize(self.scorer(embeddings), embeddings, self.speaker_mean, self.speaker_scale)

    def claimed(self, embeddings: Tensor, columns: Tensor) -> Tensor:
        """As in the base, normalized."""
        scores = self.scorer.claimed(embeddings, columns).unsqueeze(1)
        statistics = self.speaker_mean[columns, None], self.speaker_scale[columns, None]
        return self._normalize(scores, embeddings, *statistics).squeeze(1)

    def _normalize(self, scores: Tensor, embeddings: Tensor, speaker_mean: Tensor, speaker_scale: Tensor) -> Tensor:
        """(batch, models) scores, with the statistics of these models, of one shape with them or (models,)."""
        normalized = []
        if self.kind in ("z", "s"):
            normalized.append((scores - speaker_mean) * speaker_scale)
        if self.kind in ("t", "s"):
            mean, scale = moments(self.scorer.against(embeddings, self.cohort_models), self.top)
            normalized.append((scores - mean) * scale)
        return torch.stack(normalized).mean(0)
