"""SpecAugment."""

import torch
from torch import Tensor, nn

from sec4sr_pl.draws import Draws
from sec4sr_pl.types import mask_padding


class SpecMask(nn.Module):
    """A band of frequencies and a stretch of time replaced by the utterance's mean, in training only.

    Args:
        bands: the most dimensions masked, each width equally likely.
        frames: the most frames masked.

    Raises:
        ValueError: a negative size.

    Source: Park et al., "SpecAugment: A simple data augmentation method for automatic speech recognition", 2019.
    """

    def __init__(self, bands: int = 6, frames: int = 20) -> None:
        super().__init__()
        if bands < 0 or frames < 0:
            raise ValueError(f"Expected bands and frames >= 0, got {bands} and {frames}")
        self.bands, self.frames = bands, frames
        self.draws = Draws()

    def minimum_input(self, frames: int) -> int:
        """As many frames as asked for."""
        return frames

    def seed(self, seed: int) -> None:
        """Restart the draws."""
        self.draws.seed(seed)

    def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> the same shape."""
        if not self.training:
            return signal, lengths
        mean = signal.sum((1, 2)) / (lengths * signal.shape[2])
        bands = torch.full_like(lengths, signal.shape[2])
        hidden = self._mask(lengths, signal.shape[1], self.frames).unsqueeze(2)
        hidden = hidden | self._mask(bands, signal.shape[2], self.bands).unsqueeze(1)
        return mask_padding(torch.where(hidden, mean[:, None, None], signal), lengths), lengths

    def _mask(self, sizes: Tensor, padded: int, most: int) -> Tensor:
        """(batch, padded) bool: one run of up to `most` positions within each row's size."""
        draws = torch.rand(2, len(sizes), generator=self.draws.generator).to(sizes.device)
        width = torch.minimum((draws[0] * (most + 1)).long(), sizes)
        start = (draws[1] * (sizes - width + 1)).long()
        position = torch.arange(padded, device=sizes.device)
        return (position >= start.unsqueeze(1)) & (position < (start + width).unsqueeze(1))
