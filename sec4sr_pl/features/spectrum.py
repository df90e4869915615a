"""From a waveform to the power of mel bands."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchaudio.functional import melscale_fbanks

from sec4sr_pl.types import SAMPLE_RATE, mask_padding


class PowerSpectrum(torch.autograd.Function):
    """|FFT|^2 of windowed frames, with the analytic gradient.

    With X = FFT(w * frame), dL/d(frame)[n] = w[n] * Re sum_k 2 g[k] X[k] exp(2 pi i k n / N): one inverse FFT, whose
    halved inner bins cancel the 2, then `size / hop` shifted additions, rounded up. Autograd through `torch.stft`
    reaches the same numbers by way of several complex intermediates of the size of the spectrogram.
    """

    @staticmethod
    def forward(ctx: Any, signal: Tensor, window: Tensor, hop: int, n_fft: int) -> Tensor:
        """(batch, time) -> (batch, frames, n_fft // 2 + 1)."""
        spectrum = torch.fft.rfft(signal.unfold(1, window.numel(), hop) * window, n_fft)
        ctx.save_for_backward(spectrum, window)
        ctx.hop, ctx.n_fft, ctx.time = hop, n_fft, signal.shape[1]
        power: Tensor = spectrum.real.square() + spectrum.imag.square()
        return power

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Overlap-add of the inverse transforms."""
        spectrum, window = ctx.saved_tensors
        weighted = spectrum * gradient
        weighted[..., 0] *= 2.0  # the bins without a mirror image
        if ctx.n_fft % 2 == 0:
            weighted[..., -1] *= 2.0
        size, hop = window.numel(), ctx.hop
        frames = torch.fft.irfft(weighted, ctx.n_fft, norm="forward")[..., :size] * window
        batch, count = frames.shape[:2]
        pieces = frames.split(hop, dim=2)  # the last may be shorter
        added = frames.new_zeros(batch, max(count + len(pieces) - 1, -(-ctx.time // hop)), hop)
        for shift, piece in enumerate(pieces):
            added[:, shift : shift + count, : piece.shape[2]] += piece
        return added.reshape(batch, -1)[:, : ctx.time], None, None, None


def reflect(signal: Tensor, lengths: Tensor, padding: int) -> Tensor:
    """Reflect `padding` samples around both ends of each row's own valid part.

    Args:
        signal: (batch, time).
        lengths: (batch,) valid samples, each > `padding`.
        padding: samples at each end.

    Returns:
        (batch, time + 2 * padding); what lies past a row's reflected end is not defined.
    """
    padded = torch.cat([signal[:, 1 : padding + 1].flip(1), signal, signal.new_zeros(len(signal), padding)], dim=1)
    offsets = torch.arange(padding, device=signal.device)
    end = lengths.unsqueeze(1)
    mirrored = signal.gather(1, (end - 2 - offsets).clamp_min(0))
    return padded.scatter(1, padding + end + offsets, mirrored)


class MelStage(nn.Module):
    """The power of mel bands in frames of a Hann window: Slaney's filters from 0 to 8,000 Hz.

    Frames are centered on every hop of the utterance, which has silence around it, and on `TAIL` hops more. Then the
    window has left the utterance and further frames are zero: to pad frames with zeros is to extend it by silence.
    """

    TAIL = 2
    LONGEST = 8_192

    def __init__(self, mels: int, window: int, hop: int, n_fft: int) -> None:
        super().__init__()
        if not 1 <= window <= n_fft:
            raise ValueError(f"Expected a window of up to n_fft ({n_fft}) samples, got {window}")
        if max(n_fft, mels) > self.LONGEST:
            raise ValueError(f"Expected n_fft and mels of up to {self.LONGEST}, got {n_fft} and {mels}")
        if mels < 1 or hop < 1:
            raise ValueError(f"Expected mels and hop >= 1, got {mels} and {hop}")
        self.hop, self.n_fft = hop, n_fft
        self.window: Tensor
        self.filters: Tensor
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        with torch.device("cpu"):  # they are computed from their values
            filters = melscale_fbanks(n_fft // 2 + 1, 0.0, SAMPLE_RATE / 2, mels, SAMPLE_RATE, "slaney", "slaney")
        self.register_buffer("filters", filters, persistent=False)

    def minimum_input(self, frames: int) -> int:
        """Samples that yield at least `frames` frames."""
        return max(1, (frames - 1 - self.TAIL) * self.hop)

    def _rows(self, padded: Tensor) -> int:
        """Rows whose spectra stay in a CPU's cache, and under the size at which glibc returns memory at once."""
        bins = padded.shape[1] // self.hop * (self.n_fft // 2)
        return max(1, 2**18 // bins) if padded.device.type == "cpu" else max(1, len(padded))

    def energies(self, padded: Tensor) -> Tensor:
        """(batch, time) -> (batch, frames, mels), the power of each mel band wherever a whole window fits."""
        window, filters = self.window.to(padded.dtype), self.filters.to(padded.dtype)
        mel = [
            PowerSpectrum.apply(rows, window, self.hop, self.n_fft) @ filters
            for rows in torch.split(padded, self._rows(padded))
        ]
        return torch.cat(mel)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time) -> (batch, frames, mels); one frame a hop, zero past the valid frames."""
        before = self.window.numel() // 2
        after = self.TAIL * self.hop + self.window.numel() - before
        with torch.autocast(waveforms.device.type, enabled=False):
            energies = self.energies(functional.pad(mask_padding(waveforms, lengths), (before, after)))
        frames = 1 + self.TAIL + lengths // self.hop
        return mask_padding(energies, frames), frames
