"""Transformations of the waveform that are not linear: rounding, noise, medians."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from sec4sr_pl.defenses.base import Defense
from sec4sr_pl.defenses.filters import check_kernel_size
from sec4sr_pl.draws import normal
from sec4sr_pl.types import mask_padding


class Quantization(Defense):
    """Round samples to multiples of a step (QT): round(x / step) * step on the 16-bit scale.

    Args:
        step: in units of the 16-bit scale; 512 leaves 7 bits.

    Raises:
        ValueError: a step that is not between 1 and 32,768.

    Source: Yang et al., "Characterizing audio adversarial examples using temporal dependency", 2019.
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, step: int = 512) -> None:
        super().__init__(after="waveform")
        if not 1 <= step <= 32_768:
            raise ValueError(f"Expected a step of 1 to 32768 on the 16-bit scale, got {step}")
        self.step = step

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded samples, still in [-1, 1]."""
        step = self.step / 32_768
        return ((signal / step).round() * step).clamp(-1.0, 1.0), lengths


class BitDepthReduction(Quantization):
    """Round samples to fewer bits (BDR): quantization with a step of 2^(16 - bits).

    Args:
        bits: of the rounded samples. 8 is the default of SEC4SR's code.

    Raises:
        ValueError: bits outside 1 to 16.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022.
    """

    def __init__(self, bits: int = 8) -> None:
        if not 1 <= bits <= 16:
            raise ValueError(f"Expected 1 to 16 bits, got {bits}")
        super().__init__(2 ** (16 - bits))
        self.bits = bits


class GaussianNoise(Defense):
    """Add white noise at a fixed distance below each utterance's own power (AT, audio turbulence), clipped to [-1, 1].

    The gradient is exact: the noise grows with the utterance.

    Args:
        snr: power of the utterance over that of the noise, in dB. 16 is the paper's choice, its code has 25.

    Raises:
        ValueError: an SNR that is not finite.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022.
    """

    randomized = True

    def __init__(self, snr: float = 16.0) -> None:
        super().__init__(after="waveform")
        if not -math.inf < snr < math.inf:
            raise ValueError(f"Expected a finite snr in dB, got {snr}")
        self.snr = snr

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same size."""
        norm = torch.linalg.vector_norm(mask_padding(signal, lengths), dim=1)  # has a gradient at silence: zero
        deviation = norm / lengths.to(signal.dtype).sqrt() * 10.0 ** (-self.snr / 20.0)
        noise = normal(self.draws.keys(len(signal)), signal)
        return (signal + deviation.unsqueeze(1) * noise).clamp(-1.0, 1.0), lengths


def drop_extremes(values: list[Tensor]) -> list[Tensor]:
    """`values` without the elementwise smallest and largest, in an order of its own."""
    values, last = list(values), len(values) - 1

    def sort(i: int, j: int) -> None:
        values[i], values[j] = torch.minimum(values[i], values[j]), torch.maximum(values[i], values[j])

    for i in range(len(values) // 2):  # the smallest is now in the first half, the largest in the second
        sort(i, last - i)
    for i in range(1, (len(values) + 1) // 2):
        sort(0, i)
        sort(last - i, last)
    return values[1:-1]


def median(values: list[Tensor]) -> Tensor:
    """The elementwise median of an odd number of tensors.

    Of just over half of them, neither the smallest nor the largest can be the median: both are dropped and another
    joins, until one is left.
    """
    half = len(values) // 2
    kept, others = values[: half + 2], values[half + 2 :]
    while len(kept) > 1:
        kept = drop_extremes(kept) + others[:1]
        others = others[1:]
    return kept[0]


class RunningMedian(torch.autograd.Function):
    """The median of a window around each sample, zeros beyond both ends; its gradient is that of the sample it is.

    On a CPU rows go through one by one, which its cache holds.
    """

    @staticmethod
    def forward(ctx: Any, signal: Tensor, kernel_size: int) -> Tensor:
        """(batch, time) -> (batch, time)."""
        ctx.kernel_size, ctx.rows = kernel_size, 1 if signal.device.type == "cpu" else max(1, len(signal))
        padded = pad(signal, (kernel_size // 2, kernel_size // 2))
        medians = torch.cat([median(windows(row, kernel_size)) for row in torch.split(padded, ctx.rows)])
        ctx.save_for_backward(padded, medians)
        return medians

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """To the first sample of the window that equals the median."""
        padded, medians = ctx.saved_tensors
        slope = torch.zeros_like(padded)
        parts = (torch.split(tensor, ctx.rows) for tensor in (padded, medians, gradient, slope))
        for row, found, left, own in zip(*parts, strict=True):
            for window, sink in zip(windows(row, ctx.kernel_size), windows(own, ctx.kernel_size), strict=True):
                given = torch.where(window == found, left, 0.0)
                sink += given
                left = left - given
        half = ctx.kernel_size // 2
        return slope[:, half : half + gradient.shape[1]], None


def windows(padded: Tensor, size: int) -> list[Tensor]:
    """Views of (batch, time + size - 1): the first sample of each window, the second, ..., each (batch, time)."""
    time = padded.shape[1] - size + 1
    return [padded[:, shift : shift + time] for shift in range(size)]


class MedianSmoothing(Defense):
    """Each sample becomes the median of the samples around it (MS), zeros beyond both ends.

    Args:
        kernel_size: samples of the window, odd. 7 is the paper's choice, its code has 3.

    Raises:
        ValueError: an even kernel size, or one below 1.

    Source: Yang et al., "Characterizing audio adversarial examples using temporal dependency", 2019.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__(after="waveform")
        check_kernel_size(kernel_size)
        self.kernel_size = kernel_size

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Medians of windows."""
        return RunningMedian.apply(mask_padding(signal, lengths), self.kernel_size), lengths
