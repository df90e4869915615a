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
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import create_dct, melscale_fbanks

from sec4sr_pl.draws import Draws
from sec4sr_pl.types import SAMPLE_RATE, full_lengths, mask_padding, valid_mask


class FrontEnd(nn.Module):
    """An ordered chain of named stages.

    Args:
        stages: name -> module (signal, lengths) -> (signal, lengths), in the order in which they run. Each tells by
            `minimum_input(positions)` what it needs to leave that many; one that may leave rows of one length
            different lengths has the attribute `selects = True`.
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
    """The front end of SpeechBrain's models: 80 log-mel energies every 10 ms, 24 for x-vectors, without their mean.

    Windows of 25 ms (Hamming), zeros around the utterance, symmetric triangular filters on the mel scale from 0 to
    8,000 Hz, in dB, none more than 80 dB below the utterance's greatest; then `cmvn` takes each band's mean away.

    Args:
        mels: number of mel bands.
        window: samples of the Hamming window.
        hop: samples between frames.

    Source: SpeechBrain, `Fbank` and `InputNormalization` as in spkrec-ecapa-voxceleb and spkrec-xvect-voxceleb.
    """

    def __init__(self, mels: int = 80, window: int = 400, hop: int = 160) -> None:
        super().__init__({"raw": FbankStage(mels, window, hop), "cmvn": MeanNormalization()})
        self.mels, self.window, self.hop = mels, window, hop
        self.frame_size = mels


class CepstraStage(nn.Module):
    """Kaldi's mel-frequency cepstra of 25 ms every 10 ms, the first replaced by the log energy. See `MFCC`."""

    HOP, WINDOW, POINTS = 160, 400, 512
    SCALE = 32_768.0
    """Kaldi's waveforms count 16-bit steps, and its VAD thresholds energies of these."""

    def __init__(self, coefficients: int, mels: int, low: float, high: float, lifter: float) -> None:
        super().__init__()
        if not 1 <= coefficients <= mels:
            raise ValueError(f"Expected from 1 to mels ({mels}) coefficients, got {coefficients}")
        self.window: Tensor
        self.filters: Tensor
        self.cosines: Tensor
        filters = get_mel_banks(mels, self.POINTS, SAMPLE_RATE, low, high, 100.0, -500.0, 1.0)[0]
        lifted = 1.0 + 0.5 * lifter * torch.sin(torch.pi * torch.arange(coefficients) / lifter)
        self.register_buffer("window", torch.hann_window(self.WINDOW, periodic=False).pow(0.85), persistent=False)
        self.register_buffer("filters", functional.pad(filters, (0, 1)).T.contiguous(), persistent=False)
        self.register_buffer("cosines", create_dct(coefficients, mels, "ortho") * lifted, persistent=False)

    def minimum_input(self, frames: int) -> int:
        """Samples that yield at least `frames` frames."""
        return max(1, frames * self.HOP - self.HOP // 2)

    def frames(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, 400): windows centered in their hops, over each row's own end as in a mirror."""
        count = max(1, (waveforms.shape[1] + self.HOP // 2) // self.HOP)
        start = (self.HOP - self.WINDOW) // 2
        positions = torch.arange(start, start + (count - 1) * self.HOP + self.WINDOW, device=waveforms.device)
        there_and_back = 2 * lengths.unsqueeze(1)
        forth = positions.remainder(there_and_back)
        mirrored = waveforms.gather(1, torch.minimum(forth, there_and_back - 1 - forth))
        return mirrored.unfold(1, self.WINDOW, self.HOP)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time) -> (batch, frames, coefficients), zero past the valid frames."""
        with torch.autocast(waveforms.device.type, enabled=False):
            smallest = torch.finfo(torch.float32).eps
            frames = self.frames(self.SCALE * waveforms, lengths)
            frames = frames - frames.mean(2, keepdim=True)
            energy = frames.square().sum(2).clamp_min(smallest).log()
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
            emphasized = (frames - 0.97 * before).flatten(0, 1)
            power = PowerSpectrum.apply(emphasized, self.window.to(frames.dtype), self.WINDOW, self.POINTS)
            mel = power.reshape(*frames.shape[:2], -1) @ self.filters.to(frames.dtype)
            cepstra = mel.clamp_min(smallest).log() @ self.cosines.to(frames.dtype)
        valid = (lengths + self.HOP // 2) // self.HOP
        return mask_padding(torch.cat([energy.unsqueeze(2), cepstra[..., 1:]], dim=2), valid), valid


class Delta(nn.Module):
    """Frames beside their slopes over time, and the slopes' slopes: regression lines over `2 window + 1` frames.

    Past its ends an utterance goes on with its first and last frame.

    Args:
        order: how often slopes are taken.
        window: frames to each side.

    Raises:
        ValueError: an order or window below 1.

    Source: Kaldi's add-deltas.
    """

    def __init__(self, order: int = 2, window: int = 3) -> None:
        super().__init__()
        if order < 1 or window < 1:
            raise ValueError(f"Expected order and window of at least 1, got {order} and {window}")
        self.order, self.window, self.reach = order, window, order * window
        slope = torch.arange(-window, window + 1.0)
        slope = slope / slope.square().sum()
        kernels = [torch.ones(1)]
        for _ in range(order):
            kernels.append(
                functional.conv1d(
                    functional.pad(kernels[-1], (2 * window, 2 * window))[None, None], slope.flip(0)[None, None]
                )[0, 0]
            )
        aligned = [functional.pad(kernel, ((2 * self.reach + 1 - len(kernel)) // 2,) * 2) for kernel in kernels]
        self.kernels: Tensor
        self.register_buffer("kernels", torch.stack(aligned, dim=1), persistent=False)

    def minimum_input(self, frames: int) -> int:
        """As many frames as asked for."""
        return frames

    def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> (batch, frames, (order + 1) * dims)."""
        positions = torch.arange(-self.reach, signal.shape[1] + self.reach, device=signal.device).clamp_min(0)
        index = torch.minimum(positions, lengths.unsqueeze(1) - 1).clamp_min(0)
        extended = signal.gather(1, index.unsqueeze(2).expand(-1, -1, signal.shape[2]))
        with torch.autocast(signal.device.type, enabled=False):
            slopes = extended.unfold(1, 2 * self.reach + 1, 1) @ self.kernels.to(signal.dtype)
        return mask_padding(slopes.transpose(2, 3).flatten(2), lengths), lengths


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


class EnergyVAD(nn.Module):
    """Frames count as voiced where enough of the frames around them are loud.

    Args:
        threshold: log energy above which a frame is loud, on the scale of 16-bit steps.
        mean_scale: share of the utterance's mean log energy that is added to the threshold.
        context: frames to each side.
        proportion: of these frames and the one itself, that must be loud.
        fewest: an utterance that would be left with fewer frames keeps all that it has.

    Raises:
        ValueError: a proportion outside (0, 1], or a negative context.

    Source: Kaldi's compute-vad; the defaults are those of its i-vector recipe for VoxCeleb, that for x-vectors has
    context 2 and proportion 0.12.
    """

    def __init__(
        self,
        threshold: float = 5.5,
        mean_scale: float = 0.5,
        context: int = 0,
        proportion: float = 0.6,
        fewest: int = 32,
    ) -> None:
        super().__init__()
        if not 0.0 < proportion <= 1.0 or context < 0:
            raise ValueError(f"Expected proportion in (0, 1] and context >= 0, got {proportion} and {context}")
        self.threshold, self.mean_scale, self.context = threshold, mean_scale, context
        self.proportion, self.fewest = proportion, fewest

    def forward(self, energies: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames) log energies -> (batch, frames) bool."""
        valid = valid_mask(lengths, energies.shape[1])
        mean = energies.masked_fill(~valid, 0.0).sum(1) / lengths.clamp_min(1)
        loud = valid & (energies > (self.threshold + self.mean_scale * mean).unsqueeze(1))
        around = torch.stack([loud, valid], dim=1).to(energies.dtype)
        kernel = around.new_ones(2, 1, 2 * self.context + 1)
        count, of = functional.conv1d(around, kernel, padding=self.context, groups=2).unbind(1)
        return valid & (count >= of * self.proportion)


class MarkedMean(SlidingMean):
    """`SlidingMean`, after which no energy is left to tell; a last dimension is 1 in voiced frames and 0 in others."""

    def __init__(self, window: int, vad: EnergyVAD) -> None:
        super().__init__(window)
        self.vad = vad

    def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) with the energy as first dimension -> (batch, frames, dims + 1)."""
        voiced = self.vad(signal[..., 0].detach(), lengths).unsqueeze(2)
        return torch.cat([super().forward(signal, lengths)[0], voiced.to(signal.dtype)], dim=2), lengths


class Final(nn.Module):
    """The frames that the backbone hears: all, or those that are marked as voiced, in their order.

    Args:
        fewest: an utterance with fewer marked frames keeps all of them; None: frames have no mark. The mark is the last
            dimension, which `MarkedMean` adds. Means of frames, as `FeCo` makes them, count as voiced where most of
            their frames do.
    """

    def __init__(self, fewest: int | None = None) -> None:
        super().__init__()
        self.fewest, self.selects = fewest, fewest is not None

    def minimum_input(self, frames: int) -> int:
        """As many frames as asked for: fewer are left only where all are kept.

        Raises:
            ValueError: more are asked for than are sure to be left.
        """
        if self.fewest is not None and frames > self.fewest:
            raise ValueError(
                f"EnergyVAD may leave an utterance {self.fewest} frames, but what follows needs {frames}: "
                f"give it fewest={frames}"
            )
        return frames

    def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> (batch, at most as many frames, dims without the mark)."""
        if self.fewest is None:
            return signal, lengths
        valid = valid_mask(lengths, signal.shape[1])
        voiced = (signal[..., -1] > 0.5) & valid
        voiced = torch.where((voiced.sum(1) < self.fewest).unsqueeze(1), valid, voiced)
        order = (~voiced).to(torch.uint8).argsort(dim=1, stable=True)
        kept = voiced.sum(1)
        frames = signal[..., :-1].gather(1, order.unsqueeze(2).expand(-1, -1, signal.shape[2] - 1))
        return mask_padding(frames, kept), kept


class MFCC(FrontEnd):
    """The front end of the i-vector and x-vector recognizers: Kaldi's cepstra, deltas, sliding mean, VAD; no dither.

    The stages are `raw` (cepstra), `delta` (unless deltas is 0), `cmvn` and `final`. Their defaults are the i-vector's;
    the x-vector has 30 coefficients and no deltas. Kaldi's models were trained with VAD, the SEC4SR paper's code leaves
    it out, and so does the default.

    Args:
        coefficients: cepstra of a frame, of which the first is the log energy.
        deltas: orders of slopes beside the cepstra.
        mean_window: frames of the sliding mean.
        vad: which frames are heard; None: all.
        mels: number of mel bands.
        low: Hz, lower edge of the lowest band.
        high: Hz, upper edge of the highest band.
        lifter: coefficient of the cepstral weighting.

    Source: Povey et al., "The Kaldi speech recognition toolkit", 2011: compute-mfcc-feats with snip_edges false,
    use_energy and raw_energy true, and 16-bit steps as the unit of waveforms.
    """

    def __init__(
        self,
        coefficients: int = 24,
        deltas: int = 2,
        mean_window: int = 300,
        vad: EnergyVAD | None = None,
        mels: int = 30,
        low: float = 20.0,
        high: float = 7_600.0,
        lifter: float = 22.0,
    ) -> None:
        stages: dict[str, nn.Module] = {"raw": CepstraStage(coefficients, mels, low, high, lifter)}
        if deltas:
            stages["delta"] = Delta(deltas)
        stages["cmvn"] = SlidingMean(mean_window) if vad is None else MarkedMean(mean_window, vad)
        stages["final"] = Final(None if vad is None else vad.fewest)
        super().__init__(stages)
        self.coefficients, self.deltas, self.mean_window, self.vad = coefficients, deltas, mean_window, vad
        self.mels, self.low, self.high, self.lifter = mels, low, high, lifter
        self.frame_size = coefficients * (deltas + 1)
