"""Frames without their mean."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl.types import mask_padding


class MeanNormalization(nn.Module):
    """Each dimension without its mean over the utterance."""

    def minimum_input(self, frames: int) -> int:
        """As many frames as asked for."""
        return frames

    def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> the same shape."""
        mean = mask_padding(signal, lengths).sum(1, keepdim=True) / lengths[:, None, None]
        return mask_padding(signal - mean, lengths), lengths


class SlidingMean(nn.Module):
    """Frames without the mean of the frames around them.

    Near an end of the utterance the window is shifted inside it; a shorter utterance loses its own mean.

    Args:
        window: frames of the mean.

    Raises:
        ValueError: a window below 1.

    Source: Kaldi's apply-cmvn-sliding with --center and without variances.
    """

    def __init__(self, window: int = 300) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"Expected a window of at least 1 frame, got {window}")
        self.window = window

    def minimum_input(self, frames: int) -> int:
        """As many frames as asked for."""
        return frames

    def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> the same shape."""
        size, valid = signal.shape, lengths.unsqueeze(1)
        start = torch.arange(size[1], device=signal.device) - self.window // 2
        start = torch.minimum(start, valid - self.window).clamp_min(0)
        end = torch.minimum(start + self.window, valid)
        sums = functional.pad(mask_padding(signal, lengths).double().cumsum(1), (0, 0, 1, 0))
        low, high = (sums.gather(1, index.unsqueeze(2).expand(size)) for index in (start, end))
        mean = (high - low) / (end - start).clamp_min(1).unsqueeze(2)
        return mask_padding(signal - mean.to(signal.dtype), lengths), lengths
