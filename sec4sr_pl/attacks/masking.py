"""What speech masks: the level below which a change is not heard, by a simplified psychoacoustic model."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.types import SAMPLE_RATE, mask_padding, valid_mask

WINDOW, HOP = 2_048, 512
LOUDEST = 96.0
"""Level in dB that the strongest bin of an utterance is given."""
MOST_MASKERS = 44
"""No more fit below 8 kHz, which is 21.3 Bark, half a Bark apart."""
FLOOR = 1e-20
"""Power below which nothing is told apart, 200 dB under full scale."""


def bark(frequency: Tensor) -> Tensor:
    """Critical-band rate of frequencies in Hz (Zwicker and Terhardt, 1980)."""
    return 13.0 * torch.atan(7.6e-4 * frequency) + 3.5 * torch.atan((frequency / 7_500.0).square())


def hearing_threshold(frequency: Tensor) -> Tensor:
    """Absolute threshold of hearing in dB at frequencies in Hz, that of 20 Hz below it (Terhardt, 1979)."""
    f = frequency.clamp_min(20.0) / 1_000.0
    return 3.64 * f**-0.8 - 6.5 * torch.exp(-0.6 * (f - 3.3).square()) + 1e-3 * f**4


def spectrum(signal: Tensor) -> Tensor:
    """Power of (batch, time) in Hann windows, (batch, frames, bins); every sample lies in four windows."""
    window = torch.hann_window(WINDOW, dtype=signal.dtype, device=signal.device)
    padded = functional.pad(signal, (WINDOW - HOP, WINDOW - HOP + -signal.shape[1] % HOP))
    frames = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    return (frames.real.square() + frames.imag.square()).transpose(1, 2) * (8.0 / 3.0 / WINDOW**2)


def decibels(power: Tensor) -> Tensor:
    """10 log10, not below -200."""
    return 10.0 * power.clamp_min(FLOOR).log10()


class Masking(NamedTuple):
    """What each utterance of a batch masks."""

    threshold: Tensor
    """(batch, frames, bins) in dB."""
    offset: Tensor
    """(batch, 1, 1), dB to add to a power spectrum of the utterance."""
    heard: Tensor
    """(batch, frames, 1), 1 where a frame holds a sample of the utterance, else 0."""

    def excess(self, change: Tensor) -> Tensor:
        """By how many dB the spectrum of a (batch, time) change is above the threshold, mean over bins, (batch,)."""
        above = (decibels(spectrum(change)) + self.offset - self.threshold).clamp_min(0.0)
        return (above * self.heard).sum((1, 2)) / (self.heard.sum((1, 2)) * above.shape[2])


def masking(waveforms: Tensor, lengths: Tensor) -> Masking:
    """The masking threshold of (batch, time) utterances with (batch,) valid samples.

    Maskers are the peaks of a frame's spectrum above the threshold of hearing, the weaker of two within half a Bark
    left out. Each masks by its level less 6.025 + 0.275 z dB at its own rate of z Bark, 27 dB per Bark less below it,
    and above it less by 27 dB per Bark, reduced by 0.37 dB for each dB of level above 40. The powers of all and of the
    threshold of hearing add up. Tonal and noise maskers are not told apart.

    Source: ISO/IEC 11172-3 (MPEG-1), psychoacoustic model 1, as simplified by Lin and Abdulla, "Audio watermark", 2015,
    and by Qin et al., "Imperceptible, robust, and targeted adversarial examples for automatic speech recognition",
    2019, section 3.2 and appendix.
    """
    power = spectrum(mask_padding(waveforms, lengths))
    frequency = torch.fft.rfftfreq(WINDOW, 1.0 / SAMPLE_RATE, dtype=power.dtype, device=power.device)
    rate, quiet = bark(frequency), hearing_threshold(frequency)
    offset = LOUDEST - decibels(power.amax((1, 2), keepdim=True))
    below, center, above = (functional.pad(power, (1, 1))[..., i : i + power.shape[2]] for i in range(3))
    peaks = (center > below) & (center >= above) & (decibels(center) + offset > quiet)
    remaining = (decibels(below + center + above) + offset).masked_fill(~peaks, -torch.inf)
    total = (10.0 ** (quiet / 10.0)).expand_as(power).clone()
    for _ in range(MOST_MASKERS):  # the strongest first
        level, index = remaining.max(2, keepdim=True)
        distance = rate - rate[index]
        slope = torch.where(distance < 0.0, 27.0, -27.0 + 0.37 * (level - 40.0).clamp_min(0.0))
        total += 10.0 ** ((level - 6.025 - 0.275 * rate[index] + slope * distance) / 10.0)
        remaining = remaining.masked_fill(distance.abs() < 0.5, -torch.inf)
    frames = (lengths + WINDOW - HOP + HOP - 1) // HOP
    return Masking(decibels(total), offset, valid_mask(frames, power.shape[1]).unsqueeze(2).to(power))
