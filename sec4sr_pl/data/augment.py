"""Augmentations of training crops, for any recognizer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchaudio.functional import resample

from sec4sr_pl.attacks import Channel
from sec4sr_pl.types import SAMPLE_RATE, full_lengths


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


class RandomSpeed(nn.Module):
    """Faster or slower, with pitch: each row's speed is drawn from a few; where it falls short, it begins anew.

    Args:
        speeds: factors, in percent.

    Raises:
        ValueError: no speed, or one outside 50 to 200 %.

    Source: Ko et al., "Audio augmentation for speech recognition", 2015.
    """

    def __init__(self, speeds: Sequence[int] = (95, 100, 105)) -> None:
        super().__init__()
        if not speeds or not all(50 <= speed <= 200 for speed in speeds):
            raise ValueError(f"Expected speeds from 50 to 200 %, got {list(speeds)}")
        self.speeds = tuple(speeds)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, time)."""
        drawn = torch.randint(len(self.speeds), (len(waveforms),)).tolist()
        return torch.stack([self.at(row, self.speeds[index]) for row, index in zip(waveforms, drawn, strict=True)])

    def at(self, waveform: Tensor, speed: int) -> Tensor:
        """(time,) at a speed in percent, cut or repeated to the same length."""
        time = len(waveform)
        changed: Tensor = resample(waveform, speed, 100)
        return changed.repeat(-(-time // len(changed)))[:time]


class RandomRoom(nn.Module):
    """Heard in a simulated room: reverberation, band limits, gain and noise.

    Args:
        probability: of each row to be heard so.
        channel: the rooms; None: `Channel()`.

    Raises:
        ValueError: a probability outside [0, 1].
    """

    def __init__(self, probability: float = 0.5, channel: Channel | None = None) -> None:
        super().__init__()
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"Expected a probability in [0, 1], got {probability}")
        self.probability, self.channel = probability, Channel() if channel is None else channel

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, time), scaled down where it would clip."""
        chosen = torch.rand(len(waveforms), 1, device=waveforms.device) < self.probability
        heard = self.channel.draw(waveforms, full_lengths(waveforms), None)(waveforms)
        heard = heard / heard.abs().amax(1, keepdim=True).clamp_min(1.0)
        return torch.where(chosen, heard, waveforms)
