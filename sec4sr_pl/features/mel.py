"""The front end of GE2E."""

import math

from torch import Tensor, nn

from sec4sr_pl.features.base import FrontEnd
from sec4sr_pl.features.spectrum import MelStage
from sec4sr_pl.types import mask_padding


class Loudness(nn.Module):
    """Amplify what is quieter than a level; louder utterances stay as they are.

    Args:
        level: root mean square of an utterance, in dB of full scale.
    """

    def __init__(self, level: float) -> None:
        super().__init__()
        if not -math.inf < level <= 0.0:
            raise ValueError(f"Expected a level of at most 0 dB, got {level}")
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
