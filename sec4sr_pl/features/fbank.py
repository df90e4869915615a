"""The front end of SpeechBrain's models."""

import torch
from speechbrain.processing.features import Filterbank
from torch import Tensor

from sec4sr_pl.features.base import FrontEnd
from sec4sr_pl.features.normalization import MeanNormalization
from sec4sr_pl.features.spectrum import MelStage
from sec4sr_pl.types import SAMPLE_RATE, mask_padding


class FbankStage(MelStage):
    """Log-mel energies in decibels, none more than `RANGE` below the utterance's greatest. See `Fbank`."""

    TAIL = 0
    RANGE = 80.0

    def __init__(self, mels: int, window: int, hop: int) -> None:
        super().__init__(mels, window, hop, n_fft=window)
        self.window = torch.hamming_window(window)
        with torch.device("cpu"):
            bins = torch.eye(window // 2 + 1).unsqueeze(0)  # the filters are what they make of each bin alone
            self.filters = Filterbank(mels, log_mel=False, n_fft=window, sample_rate=SAMPLE_RATE)(bins)[0]

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time) -> (batch, frames, mels) in dB; one frame a hop, zero past the valid frames."""
        energies, frames = super().forward(waveforms, lengths)
        with torch.autocast(waveforms.device.type, enabled=False):
            decibels = 10.0 * energies.clamp_min(1e-10).log10()  # padding has none above it
            floor = decibels.amax((1, 2), keepdim=True) - self.RANGE
            return mask_padding(torch.maximum(decibels, floor), frames), frames


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
