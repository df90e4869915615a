"""The words every room shares: sample rate, reject label, batch, valid samples."""

from typing import NamedTuple

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
"""Samples per second of every waveform inside the package."""

REJECT = -1
"""The label of a speaker who is not enrolled, and the decision to accept nobody."""


class Batch(NamedTuple):
    """Utterances that travel together."""

    waveforms: Tensor
    """(batch, time) float32 in [-1, 1], zero-padded at the end."""
    lengths: Tensor
    """(batch,) int64, valid samples."""
    speakers: Tensor
    """(batch,) int64, index into `Scorer.speakers`, or `REJECT`; the claim to be one, where false, is `~index`."""
    names: list[str]
    """Utterance ids, unique in a data set."""


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """True where a position belongs to the signal and not to its padding.

    Args:
        lengths: (batch,) valid positions.
        size: padded size.

    Returns:
        (batch, size) bool.
    """
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def mask_padding(signal: Tensor, lengths: Tensor) -> Tensor:
    """Zero, with zero gradient, past the valid positions of dimension 1.

    Args:
        signal: (batch, size, ...).
        lengths: (batch,) valid positions.
    """
    mask = valid_mask(lengths, signal.shape[1])
    return signal.masked_fill(~mask.reshape(mask.shape + (1,) * (signal.dim() - 2)), 0.0)


def single_precision(scores: Tensor) -> Tensor:
    """Scores no less precise than float32: in half, a score and the threshold that it exceeds may be one number."""
    return scores.float() if scores.element_size() < 4 else scores


def full_lengths(signal: Tensor) -> Tensor:
    """(batch,) int64: every position of dimension 1 is valid."""
    return torch.full((signal.shape[0],), signal.shape[1], dtype=torch.int64, device=signal.device)
