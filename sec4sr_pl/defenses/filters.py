"""Linear transformations of the waveform, each of which reports the response that it realizes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.fft import next_fast_len
from scipy.signal import butter, buttord, sosfilt
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool1d
from torchaudio.functional import resample

from sec4sr_pl.defenses.base import Defense
from sec4sr_pl.types import SAMPLE_RATE, full_lengths, mask_padding

NYQUIST = SAMPLE_RATE // 2
LARGEST_ORDER = 100
"""Of a Butterworth filter: what needs a higher one asks for edges that are too close."""


def check_kernel_size(kernel_size: int) -> None:
    """Refuse a window that has no sample in its middle.

    Raises:
        ValueError: an even kernel size, or one below 1.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"Expected an odd kernel_size of at least 1, got {kernel_size}")


class Filter(Defense):
    """A linear transformation of the waveform, clipped to [-1, 1], with the exact gradient."""

    def __init__(self) -> None:
        super().__init__(after="waveform")

    def response(self, frequencies: Tensor) -> Tensor:
        """The gain that it realizes, in dB, measured on tones: what the design asked for may differ.

        Args:
            frequencies: (n,) in Hz, from 0 to 8,000.

        Raises:
            ValueError: a frequency outside that range.
        """
        if not bool(((frequencies >= 0) & (frequencies <= NYQUIST)).all()):
            raise ValueError(f"Expected frequencies from 0 to {NYQUIST} Hz, got {frequencies.tolist()}")
        time = torch.arange(2 * SAMPLE_RATE, dtype=torch.float64)
        settled = slice(SAMPLE_RATE, len(time) - SAMPLE_RATE // 8)
        window = torch.hann_window(len(time[settled]), dtype=torch.float64)
        gains = []
        for frequency in frequencies.tolist():
            phase = 2 * math.pi * frequency / SAMPLE_RATE * time
            probe = window * torch.polar(torch.ones_like(phase), -phase)[settled]
            tone = 0.25 * phase.cos()
            with torch.no_grad():
                output, _ = self.transform(tone[None], full_lengths(tone[None]))
            gains.append((output[0, settled] * probe).sum().abs() / (tone[settled] * probe).sum().abs())
        return 20.0 * torch.stack(gains).clamp_min(1e-15).log10()


class AverageSmoothing(Filter):
    """Each sample becomes the mean of the samples around it (AS), zeros beyond both ends.

    Args:
        kernel_size: samples of the window, odd. 17 is the paper's choice, its code has 3.

    Raises:
        ValueError: an even kernel size, or one below 1.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022.
    """

    def __init__(self, kernel_size: int = 17) -> None:
        super().__init__()
        check_kernel_size(kernel_size)
        self.kernel_size = kernel_size

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Means of windows."""
        signal = mask_padding(signal, lengths)
        return avg_pool1d(signal.unsqueeze(1), self.kernel_size, 1, self.kernel_size // 2).squeeze(1), lengths


class Downsampling(Filter):
    """Resample to a lower rate and back (DS), by windowed sinc; what lies above half the lower rate is lost.

    Args:
        ratio: lower rate as a fraction of 16 kHz, in (0, 1), with at most three decimals. 0.45 is the paper's choice,
            its code has 0.5.

    Raises:
        ValueError: a ratio outside (0, 1), or finer than three decimals: its sinc filters would fill the memory.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022.
    """

    def __init__(self, ratio: float = 0.45) -> None:
        super().__init__()
        if not (0.0 < ratio < 1.0 and abs(1000 * ratio - round(1000 * ratio)) < 1e-6 and round(1000 * ratio)):
            raise ValueError(f"Expected a ratio in (0, 1) with at most three decimals, got {ratio}")
        self.ratio = ratio

    @property
    def rate(self) -> int:
        """The lower rate, in Hz."""
        return round(1000 * self.ratio) * SAMPLE_RATE // 1000

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Resampled twice, cut to the same size."""
        with torch.autocast(signal.device.type, enabled=False):
            low = resample(mask_padding(signal, lengths), SAMPLE_RATE, self.rate)
            low = mask_padding(
                low, (lengths * self.rate + SAMPLE_RATE - 1) // SAMPLE_RATE
            )  # a row ends where it would alone
            output: Tensor = resample(low, self.rate, SAMPLE_RATE)[:, : signal.shape[1]]
        return output.clamp(-1.0, 1.0), lengths


class Convolution(torch.autograd.Function):
    """Causal convolution of rows with an impulse response by FFT; the gradient is the correlation.

    Both in double precision: a logarithmic front end would make scores of the rounding error of a single-precision FFT,
    all that it leaves in a stopband, which depends on the padded size.
    """

    @staticmethod
    def forward(ctx: Any, signal: Tensor, impulse: Tensor) -> Tensor:
        """(batch, time) and (taps,) -> (batch, time)."""
        time = signal.shape[1]
        ctx.size = next_fast_len(time + len(impulse) - 1, real=True)
        spectrum = torch.fft.rfft(impulse, ctx.size)
        ctx.save_for_backward(spectrum)
        convolved: Tensor = torch.fft.irfft(torch.fft.rfft(signal.double(), ctx.size) * spectrum, ctx.size)
        return convolved[:, :time].to(signal.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The impulse response has no gradient."""
        (spectrum,) = ctx.saved_tensors
        correlated = torch.fft.irfft(torch.fft.rfft(gradient.double(), ctx.size) * spectrum.conj(), ctx.size)
        return correlated[:, : gradient.shape[1]].to(gradient.dtype), None


class Butterworth(Filter):
    """A causal Butterworth filter of the lowest order that keeps the edges asked for.

    It is designed in second-order sections in double precision, and applied as the convolution with its impulse
    response up to where that has faded below 1e-7 of full scale: stable at any order, unlike the recursion in direct
    form, whose rounded coefficients diverge. The order, and so the response, follows from the tighter edge alone: see
    `order`, `corners` and `response`.

    Args:
        passband: upper, or lower and upper, edge in Hz within which at most `ripple` is lost.
        stopband: as many edges in Hz beyond which at least `attenuation` is lost.
        ripple: dB.
        attenuation: dB.

    Raises:
        ValueError: edges out of order or too close, or losses that are not 0 < ripple < attenuation.
    """

    def __init__(self, passband: Sequence[float], stopband: Sequence[float], ripple: float, attenuation: float) -> None:
        super().__init__()
        if not 0.0 < ripple < attenuation < np.inf:
            raise ValueError(f"Expected 0 < ripple < attenuation in dB, got {ripple} and {attenuation}")
        self.ripple, self.attenuation = ripple, attenuation
        order, corners = buttord(passband, stopband, ripple, attenuation, fs=SAMPLE_RATE)
        told = f"edges {list(passband)} and {list(stopband)} Hz"
        if order > LARGEST_ORDER:
            raise ValueError(f"Expected edges that an order up to {LARGEST_ORDER} keeps apart, got {told}: {order}")
        self.order = int(order)
        """Of the low-pass prototype: a band-pass has twice as many poles."""
        self.corners = [float(corner) for corner in np.atleast_1d(corners)]
        """Frequencies of 3 dB loss, in Hz."""
        kind = "lowpass" if len(self.corners) == 1 else "bandpass"
        sections = butter(order, np.squeeze(corners), kind, output="sos", fs=SAMPLE_RATE)
        response = sosfilt(sections, np.eye(1, 4 * SAMPLE_RATE)[0])
        rest = np.abs(response)[::-1].cumsum()[::-1]
        if not (rest[3 * SAMPLE_RATE] < 1e-7 and rest[0] > 0.9):  # the sum of magnitudes bounds the largest gain
            raise ValueError(f"Expected edges of a filter that fades within 3 s, got {told}")
        self.impulse: Tensor
        self.register_buffer("impulse", torch.from_numpy(response[: int(np.argmax(rest < 1e-7))]), persistent=False)

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Filtered from rest; causal, so that padding at the end has no say."""
        with torch.autocast(signal.device.type, enabled=False):
            filtered = Convolution.apply(mask_padding(signal, lengths), self.impulse.to(signal.device, torch.float64))
        return filtered.clamp(-1.0, 1.0), lengths


class LowPass(Butterworth):
    """A causal Butterworth low-pass (LPF); see `Butterworth`. The default has order 24.

    Args:
        passband: Hz up to which at most `ripple` is lost.
        stopband: Hz from which at least `attenuation` is lost. 4,500 is the paper's choice, its code has 8,000.
        ripple: dB.
        attenuation: dB.

    Raises:
        ValueError: not 0 < passband < stopband <= 8,000, or as for `Butterworth`.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022.
    """

    def __init__(
        self, passband: float = 4_000.0, stopband: float = 4_500.0, ripple: float = 3.0, attenuation: float = 40.0
    ) -> None:
        if not 0.0 < passband < stopband <= NYQUIST:
            raise ValueError(f"Expected 0 < passband < stopband <= {NYQUIST} Hz, got {passband} and {stopband}")
        super().__init__([passband], [stopband], ripple, attenuation)
        self.passband, self.stopband = passband, stopband


class BandPass(Butterworth):
    """A causal Butterworth band-pass (BPF); see `Butterworth`. The default has order 7, 14 poles.

    That order follows from the lower edges: upper stop edges from 5,500 to 7,900 Hz all give the same filter, which is
    the flat curve of the paper.

    Args:
        passband: lower and upper Hz between which at most `ripple` is lost.
        stopband: lower and upper Hz beyond which at least `attenuation` is lost. 150 and 6,000 are the paper's choice,
            its code has 50 and 5,000.
        ripple: dB.
        attenuation: dB.

    Raises:
        ValueError: not 0 < stop < pass < pass < stop < 8,000, or as for `Butterworth`.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022.
    """

    def __init__(
        self,
        passband: tuple[float, float] = (300.0, 4_000.0),
        stopband: tuple[float, float] = (150.0, 6_000.0),
        ripple: float = 3.0,
        attenuation: float = 40.0,
    ) -> None:
        (low, high), (stop_low, stop_high) = passband, stopband
        if not 0.0 < stop_low < low < high < stop_high < NYQUIST:
            raise ValueError(
                f"Expected a passband inside the stopband inside 0 to {NYQUIST} Hz, got {passband} and {stopband}"
            )
        super().__init__(passband, stopband, ripple, attenuation)
        self.passband, self.stopband = passband, stopband
