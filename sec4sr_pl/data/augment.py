"""Augmentations of training crops, for any recognizer."""

import torch
from torch import Tensor, nn

from sec4sr_pl.types import SAMPLE_RATE


class RandomEqualizer(nn.Module):
    """Another microphone and room: a smooth random frequency response, and a random level.

    Args:
        response: standard deviation of the response at each knot, dB.
        level: standard deviation of the level, dB.
        knots: points equally spaced on the mel scale between which the response in dB is linear.

    Raises:
        ValueError: a negative deviation or fewer than two knots.
    """

    def __init__(self, response: float = 2.0, level: float = 2.0, knots: int = 5) -> None:
        super().__init__()
        if response < 0 or level < 0 or knots < 2:
            raise ValueError(f"Expected response and level >= 0 and knots >= 2, got {response}, {level}, {knots}")
        self.response, self.level, self.knots = response, level, knots

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, time), scaled down where it would clip."""
        batch, time = waveforms.shape
        frequency = torch.linspace(0.0, SAMPLE_RATE / 2, time // 2 + 1, device=waveforms.device)
        mel = torch.log1p(frequency / 700.0)
        position = mel / mel[-1] * (self.knots - 1)
        left = position.long().clamp_max(self.knots - 2)
        decibels = self.response * torch.randn(batch, self.knots, device=waveforms.device)
        decibels = torch.lerp(decibels[:, left], decibels[:, left + 1], position - left)
        decibels = decibels + self.level * torch.randn(batch, 1, device=waveforms.device)
        filtered: Tensor = torch.fft.irfft(torch.fft.rfft(waveforms) * 10.0 ** (decibels / 20.0), time)
        filtered /= filtered.abs().amax(1, keepdim=True).clamp_min(1.0)
        return filtered
