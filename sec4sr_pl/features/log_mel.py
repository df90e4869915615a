"""The front end of AudioNet."""

import torch
from torch import Tensor

from sec4sr_pl.features.base import FrontEnd
from sec4sr_pl.features.spec_mask import SpecMask
from sec4sr_pl.features.spectrum import MelStage, reflect
from sec4sr_pl.types import mask_padding


class LogMelStage(MelStage):
    """Pre-emphasis, then mel energies in decibels. See `LogMel`."""

    def __init__(self, mels: int, window: int, hop: int, n_fft: int, pre_emphasis: float) -> None:
        super().__init__(mels, window, hop, n_fft)
        if window % 2:
            raise ValueError(f"Expected a window of an even number of samples, got {window}")
        if not abs(pre_emphasis) <= 1.0:
            raise ValueError(f"Expected pre_emphasis in [-1, 1], got {pre_emphasis}")
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
