"""Errors of who speaks."""

from typing import NamedTuple

import torch
from torch import Tensor

from sec4sr_pl.metrics.counts import ErrorRates, Fraction, counted, rates
from sec4sr_pl.types import REJECT


def identification_error_rate(decisions: Tensor, speakers: Tensor) -> Tensor:
    """Fraction of the enrolled speakers' utterances that an open-set recognizer accepts as somebody else (IER).

    Rejected ones are no identification errors, and those of strangers do not count.

    Args:
        decisions: (batch,) int64, indices of speakers or `REJECT`.
        speakers: (batch,) int64, who speaks, `REJECT` for who is not enrolled.

    Returns:
        () float in [0, 1], NaN where no enrolled speaker spoke.

    Raises:
        ValueError: not two integer tensors of the same (batch,) shape.
    """
    wrong, enrolled = counted(*_identified(decisions, speakers))
    return wrong / enrolled


def _identified(decisions: Tensor, speakers: Tensor) -> tuple[Tensor, Tensor]:
    """Who is enrolled, and who is accepted as somebody else, two (batch,) bool."""
    for given in (decisions, speakers):
        if given.dim() != 1 or given.is_floating_point() or given.dtype == torch.bool:
            raise ValueError(f"expected (batch,) integers, got {tuple(given.shape)} {given.dtype}")
    if decisions.shape != speakers.shape:
        raise ValueError(f"expected decisions on the same utterances, got {len(decisions)} and {len(speakers)}")
    return speakers != REJECT, (decisions != REJECT) & (decisions != speakers)


class IdentificationErrorRate(Fraction):
    """Fraction of the enrolled speakers' utterances that are accepted as somebody else: `identification_error_rate`."""

    def update(self, decisions: Tensor, speakers: Tensor) -> None:
        """Count a batch, two (batch,) int64."""
        super().update(*_identified(decisions, speakers))


def identification_scores(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Best scores of enrolled speakers who were found, and of imposters (OSI).

    Arguments are those of `verification_scores`.

    Returns:
        (found,) and (imposters,): an enrolled speaker taken for another is an error at any threshold.
    """
    best, found = scores.max(dim=1)
    return best[found == labels], best[labels == REJECT]


class OpenSetErrors(NamedTuple):
    """Rates of the three errors of open-set identification, () float, NaN where nobody could make one."""

    false_acceptance: Tensor
    """Imposters who are accepted, FAR."""
    false_rejection: Tensor
    """Enrolled speakers who are rejected, FRR."""
    identification_error: Tensor
    """Enrolled speakers who are accepted as another, IER."""


def open_set_errors(decisions: Tensor, labels: Tensor) -> OpenSetErrors:
    """Error rates of decisions in an open set; with one enrolled speaker FAR and FRR are those of verification.

    Args:
        decisions: (batch,) speakers, or `REJECT`.
        labels: (batch,) true speakers, or `REJECT`.

    Raises:
        ValueError: shapes that differ.
    """
    return OpenSetErrors(*rates(*_open_set_counts(decisions, labels)))


def open_set_flags(decisions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each utterance, which of the errors was made, and which could have been, (3, batch) bool each.

    Arguments and errors are those of `open_set_errors`, whose order is that of the kinds.
    """
    if decisions.dim() != 1 or decisions.shape != labels.shape:
        raise ValueError(f"expected a decision for each label, got {tuple(decisions.shape)} for {tuple(labels.shape)}")
    (enrolled, confused), accepted = _identified(decisions, labels), decisions != REJECT
    wrong = [accepted & ~enrolled, ~accepted & enrolled, confused & enrolled]
    return torch.stack(wrong), torch.stack([~enrolled, enrolled, enrolled])


def _open_set_counts(decisions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How often each error was made, and how often it could have been, (3,) each."""
    wrong, possible = open_set_flags(decisions, labels)
    return wrong.sum(1), possible.sum(1)


class OpenSetErrorRates(ErrorRates):
    """FAR, FRR and IER of open-set identification, over all utterances seen: `open_set_errors`."""

    kinds = 3

    def update(self, decisions: Tensor, labels: Tensor) -> None:
        """Count a batch, two (batch,) int64."""
        self._count(*_open_set_counts(decisions, labels))

    def compute(self) -> OpenSetErrors:
        """Return rates, NaN where nobody could make an error."""
        return OpenSetErrors(*rates(self.errors, self.chances))
