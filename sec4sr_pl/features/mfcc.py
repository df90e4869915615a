"""The front end of the i-vector and x-vector recognizers."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import create_dct

from sec4sr_pl.features.base import FrontEnd
from sec4sr_pl.features.delta import Delta
from sec4sr_pl.features.normalization import SlidingMean
from sec4sr_pl.features.spectrum import PowerSpectrum
from sec4sr_pl.features.vad import EnergyVAD, Final, MarkedMean
from sec4sr_pl.types import SAMPLE_RATE, mask_padding


class CepstraStage(nn.Module):
    """Kaldi's mel-frequency cepstra of 25 ms every 10 ms, the first replaced by the log energy. See `MFCC`."""

    HOP, WINDOW, POINTS = 160, 400, 512
    SCALE = 32_768.0
    """Kaldi's waveforms count 16-bit steps, and its VAD thresholds energies of these."""

    def __init__(self, coefficients: int, mels: int, low: float, high: float, lifter: float) -> None:
        super().__init__()
        if not 1 <= coefficients <= mels:
            raise ValueError(f"Expected from 1 to mels ({mels}) coefficients, got {coefficients}")
        if not (0.0 <= low < high <= SAMPLE_RATE / 2 and 0.0 < lifter < torch.inf):
            raise ValueError(
                f"Expected 0 <= low < high <= {SAMPLE_RATE // 2} and lifter > 0, got {low}, {high} and {lifter}"
            )
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
