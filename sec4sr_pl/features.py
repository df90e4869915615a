"""From a waveform to frames, by named stages: batched, masked, differentiable, without dither.

A front end is an ordered dictionary of stages. Each stage maps (signal, lengths) to (signal, lengths); the first takes
the waveform. Defenses name the stage they act after, so a recognizer is one loop over stages and defenses.
"""

from typing import Any

import torch
from speechbrain.processing.features import Filterbank
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchaudio.functional import melscale_fbanks

from sec4sr_pl.draws import Draws
from sec4sr_pl.types import SAMPLE_RATE, full_lengths, mask_padding


class FrontEnd(nn.Module):
    """An ordered chain of named stages.

    Args:
        stages: name -> module (signal, lengths) -> (signal, lengths), in the order in which they run.
    """

    frame_size: int
    """Dimensions of the last stage's frames."""

    def __init__(self, stages: dict[str, nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames of (batch, time) waveforms: (batch, frames, dims) and (batch,) valid frames."""
        signal, valid = waveforms, full_lengths(waveforms) if lengths is None else lengths
        for stage in self.stages.values():
            signal, valid = stage(signal, valid)
        return signal, valid


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

    def __init__(self, mels: int, window: int, hop: int, n_fft: int) -> None:
        super().__init__()
        if window > n_fft:
            raise ValueError(f"Expected a window of up to n_fft ({n_fft}) samples, got {window}")
        self.hop, self.n_fft = hop, n_fft
        self.window: Tensor
        self.filters: Tensor
        self.register_buffer("window", torch.hann_window(window), persistent=False)
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


class LogMelStage(MelStage):
    """Pre-emphasis, then mel energies in decibels. See `LogMel`."""

    def __init__(self, mels: int, window: int, hop: int, n_fft: int, pre_emphasis: float) -> None:
        super().__init__(mels, window, hop, n_fft)
        if window % 2:
            raise ValueError(f"Expected a window of an even number of samples, got {window}")
        self.pre_emphasis = pre_emphasis

    def minimum_input(self, frames: int) -> int:
        """Samples that yield at least `frames` frames; the reflection needs more than half a window."""
        return max((frames - 1) * self.hop, self.window.numel() // 2 + 1) + 1

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time) -> (batch, frames, mels) in dB; one frame a hop, zero past the valid frames."""
        with torch.autocast(waveforms.device.type, enabled=False):
            emphasized = waveforms[:, 1:] - self.pre_emphasis * waveforms[:, :-1]
            lengths = lengths - 1
            padded = reflect(emphasized, lengths, self.window.numel() // 2)
            decibels = 10.0 * self.energies(padded).clamp_min(1e-16).log10()
        frames = 1 + lengths // self.hop
        return mask_padding(decibels, frames), frames


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


class LogMel(FrontEnd):
    """The front end of AudioNet: 32 log-mel energies every 10 ms.

    Pre-emphasis drops the first sample; centered frames of a periodic Hann window with reflect padding; power; Slaney
    mel filters from 0 to 8,000 Hz; 10 log10(max(., 1e-16)); no normalization. 80,000 samples give 500 frames.

    Args:
        mels: number of mel bands.
        window: samples of the Hann window, an even number.
        hop: samples between frames.
        n_fft: points of the Fourier transform.
        pre_emphasis: coefficient of the first-order difference.
        mask: hides parts of the frames in training, after the defenses at `raw`.

    Source: Jati et al., "Adversarial attack and defense strategies for deep speaker recognition systems", 2021.
    """

    def __init__(
        self,
        mels: int = 32,
        window: int = 800,
        hop: int = 160,
        n_fft: int = 1024,
        pre_emphasis: float = 0.97,
        mask: SpecMask | None = None,
    ) -> None:
        raw = LogMelStage(mels, window, hop, n_fft, pre_emphasis)
        super().__init__({"raw": raw} if mask is None else {"raw": raw, "masked": mask})
        self.mask = mask
        self.mels, self.window, self.hop, self.n_fft, self.pre_emphasis = mels, window, hop, n_fft, pre_emphasis
        self.frame_size = mels


class Loudness(nn.Module):
    """Amplify what is quieter than a level; louder utterances stay as they are.

    Args:
        level: root mean square of an utterance, in dB of full scale.
    """

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def minimum_input(self, samples: int) -> int:
        """As many samples as asked for."""
        return samples

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time) -> the same shape; -100 dB counts as silence, which is amplified no further."""
        waveforms = mask_padding(waveforms, lengths)
        power = (waveforms.square().sum(1) / lengths).clamp_min(1e-10)
        gain = (10.0 ** (self.level / 20.0) / power.sqrt()).clamp_min(1.0)
        return waveforms * gain.unsqueeze(1), lengths


class Mel(FrontEnd):
    """The front end of GE2E: the power, no logarithm, of 40 mel bands every 10 ms.

    Windows of 25 ms, zeros around the utterance, Slaney mel filters from 0 to 8,000 Hz: librosa's `melspectrogram`, and
    two frames more, in which the last window leaves the utterance. Energies without a logarithm depend on the volume,
    so quiet utterances are amplified first, a stage of its own with its gradient.

    Args:
        mels: number of mel bands.
        window: samples of the Hann window.
        hop: samples between frames.
        level: dB of full scale up to which quiet utterances are amplified; None: they are taken as they are.

    Source: Resemblyzer (https://github.com/resemble-ai/Resemblyzer), after Wan et al., 2018; without its voice activity
    detection, which cuts the waveform where no gradient follows.
    """

    def __init__(self, mels: int = 40, window: int = 400, hop: int = 160, level: float | None = -30.0) -> None:
        raw = MelStage(mels, window, hop, window)
        super().__init__({"raw": raw} if level is None else {"loudness": Loudness(level), "raw": raw})
        self.mels, self.window, self.hop, self.level = mels, window, hop, level
        self.frame_size = mels


class FbankStage(MelStage):
    """Log-mel energies in decibels, none more than `RANGE` below the utterance's greatest. See `Fbank`."""

    TAIL = 0
    RANGE = 80.0

    def __init__(self, mels: int, window: int, hop: int) -> None:
        super().__init__(mels, window, hop, n_fft=window)
        self.window = torch.hamming_window(window)
        bins = torch.eye(window // 2 + 1).unsqueeze(0)  # the filters are what they make of each bin alone
        self.filters = Filterbank(mels, log_mel=False, n_fft=window, sample_rate=SAMPLE_RATE)(bins)[0]

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time) -> (batch, frames, mels) in dB; one frame a hop, zero past the valid frames."""
        energies, frames = super().forward(waveforms, lengths)
        with torch.autocast(waveforms.device.type, enabled=False):
            decibels = 10.0 * energies.clamp_min(1e-10).log10()  # padding has none above it
            floor = decibels.amax((1, 2), keepdim=True) - self.RANGE
            return mask_padding(torch.maximum(decibels, floor), frames), frames


class MeanNormalization(nn.Module):
    """Each dimension without its mean over the utterance."""

    def minimum_input(self, frames: int) -> int:
        """As many frames as asked for."""
        return frames

    def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> the same shape."""
        mean = mask_padding(signal, lengths).sum(1, keepdim=True) / lengths[:, None, None]
        return mask_padding(signal - mean, lengths), lengths


class Fbank(FrontEnd):
    """The front end of SpeechBrain's ECAPA and ResNet: 80 log-mel energies every 10 ms, without their mean.

    Windows of 25 ms (Hamming), zeros around the utterance, symmetric triangular filters on the mel scale from 0 to
    8,000 Hz, in dB, none more than 80 dB below the utterance's greatest; then `cmvn` takes each band's mean away.

    Args:
        mels: number of mel bands.
        window: samples of the Hamming window.
        hop: samples between frames.

    Source: SpeechBrain, `Fbank` and `InputNormalization` as in spkrec-ecapa-voxceleb.
    """

    def __init__(self, mels: int = 80, window: int = 400, hop: int = 160) -> None:
        super().__init__({"raw": FbankStage(mels, window, hop), "cmvn": MeanNormalization()})
        self.mels, self.window, self.hop = mels, window, hop
        self.frame_size = mels
