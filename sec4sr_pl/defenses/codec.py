"""The contract of a codec: encode, decode, and give back as many samples, in time with those that came."""

from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import butter, correlate, sosfiltfilt
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool2d, pad

from sec4sr_pl import system
from sec4sr_pl.defenses.base import Defense
from sec4sr_pl.types import SAMPLE_RATE, mask_padding

Gradient = Literal["identity", "gain"]
Samples = NDArray[np.int16]
LONGEST_DELAY = 4_096
"""Samples; AAC of two frames has half of it."""
WINDOW, HOP = 256, 64
BANDS, FRAMES = 3, 9
"""Bins of 62.5 Hz and frames of 4 ms over which a gain is averaged."""


def spectra(signal: Tensor) -> Tensor:
    """Short-time spectra of (batch, time), (batch, bins, frames)."""
    window = torch.hann_window(WINDOW).to(signal)
    return torch.stft(signal, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)


def gains(signal: Tensor, output: Tensor) -> Tensor:
    """How much of each stretch of time and frequency of the signal is in the output, (batch, bins, frames) in [0, 2].

    The least-squares factor between their short-time spectra, over a few neighbors: near 1 where a codec follows the
    waveform, 0 where it drops or invents it.
    """
    x, y = spectra(signal), spectra(output)
    size, padding = (BANDS, FRAMES), (BANDS // 2, FRAMES // 2)
    cross, power = (avg_pool2d(p, size, 1, padding) for p in ((x.conj() * y).real, x.real.square() + x.imag.square()))
    return (cross / (power + 1e-9)).clamp(0.0, 2.0)


class GainThrough(torch.autograd.Function):
    """The output forward; backward a filter whose gains over time and frequency are those from signal to output."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, output: Tensor, lengths: Tensor) -> Tensor:
        """`output`, as if it were filtered `signal`, (batch, time)."""
        ctx.save_for_backward(signal, output, lengths)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The filter is its own transpose."""
        signal, output, lengths = ctx.saved_tensors
        time, room = gradient.shape[1], (0, WINDOW)  # as many frames over an utterance's end, however it is padded
        signal, output, gradient = (pad(mask_padding(w, lengths), room) for w in (signal, output, gradient))
        kept, window = gains(signal, output) * spectra(gradient), torch.hann_window(WINDOW).to(gradient)
        filtered = torch.istft(kept, WINDOW, HOP, window=window, length=time + WINDOW)
        return mask_padding(filtered[:, :time], lengths), None, None


class Codec(Defense):
    """A lossy codec as a defense: 16-bit samples are encoded, decoded, and moved back by the codec's delay.

    The delay is measured at construction, which also shows at once whether the library is there and takes the settings.
    Rows go through in parallel, each by itself. A subclass writes `round_trip`.

    Args:
        gradient: what stands for the missing one: `identity`, or `gain`, a filter fitted to what the codec did.

    Raises:
        ValueError: another gradient.
    """

    differentiable: ClassVar[bool] = False
    software = f"av {version('av')}" if find_spec("av") else ""
    gradients: ClassVar[tuple[str, ...]] = ("identity", "gain")

    def __init__(self, gradient: Gradient = "identity") -> None:
        super().__init__(after="waveform")
        if gradient not in self.gradients:
            raise ValueError(f"Expected gradient to be {' or '.join(map(repr, self.gradients))}, got '{gradient}'")
        self.gradient = gradient
        self.delay = self.measure_delay()
        """Samples by which the decoded signal comes too late."""

    @abstractmethod
    def round_trip(self, samples: Samples) -> Samples:
        """(time,) samples encoded and decoded: delayed, of any length that covers what came."""

    def measure_delay(self) -> int:
        """The lag at which the decoded signal matches what was encoded best."""
        band = butter(4, (500, 3_000), "bandpass", output="sos", fs=SAMPLE_RATE)  # codecs turn the phase of the lows
        original, decoded = (sosfiltfilt(band, x) for x in (probe(), self.round_trip(np.pad(probe(), (0, 8_192)))))
        match = correlate(decoded, original, method="fft")[len(original) - 1 - LONGEST_DELAY :]
        return int(match[: 2 * LONGEST_DELAY + 1].argmax()) - LONGEST_DELAY

    def through(self, signal: Tensor, output: Tensor, lengths: Tensor) -> Tensor:
        """`output` with the chosen gradient."""
        if self.gradient == "identity":
            return super().through(signal, output, lengths)
        return GainThrough.apply(signal, output, lengths)  # type: ignore[no-any-return]

    def coded(self, samples: Samples) -> Samples:
        """(time,) samples through the codec, as many and in time."""
        decoded = self.round_trip(np.pad(samples, (0, max(0, self.delay))))
        decoded = np.pad(decoded, (max(0, -self.delay), 0))[max(0, self.delay) :][: len(samples)]
        return np.pad(decoded, (0, len(samples) - len(decoded)))

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same size, on the 16-bit grid."""
        integers = (signal * 32_768.0).round().clamp(-32_768, 32_767).to("cpu", torch.int16).numpy()
        rows = [row[:length] for row, length in zip(integers, lengths.tolist(), strict=True)]
        with ThreadPoolExecutor(min(len(rows) or 1, system.cores())) as threads:
            decoded = list(threads.map(self.coded, rows))
        out = [pad(torch.from_numpy(row), (0, signal.shape[1] - len(row))) for row in decoded]
        return torch.stack(out).to(signal) / 32_768.0 + 0.0 * signal if out else signal, lengths  # NaN stays NaN


@cache
def probe() -> Samples:
    """A second of something like a voice, whose pitch glides so that no other lag matches: (16000,)."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    phase = 2.0 * np.pi * (100.0 * time + 40.0 * time**2)
    voice = sum(np.cos(k * phase) * np.exp(-(((k * 120.0 - 500.0) / 900.0) ** 2)) for k in range(1, 25))
    rhythm = 0.55 - 0.45 * np.cos(2.0 * np.pi * 5.0 * time)
    loud = voice * rhythm / np.abs(voice).max()
    return np.rint(16_000.0 * loud).astype(np.int16)  # type: ignore[no-any-return]


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a setting out of range.

    Raises:
        ValueError: a value that is not between `low` and `high`.
    """
    if not low <= value <= high:
        raise ValueError(f"Expected {name} from {low:g} to {high:g}, got {value}")


def one_of_rates(bit_rate: int, rates: tuple[int, ...]) -> None:
    """Refuse a bit rate that the codec does not have.

    Raises:
        ValueError: a bit rate that is not among those.
    """
    if bit_rate not in rates:
        raise ValueError(f"Expected a bit rate of {', '.join(map(str, rates))}, got {bit_rate}")
