"""Which frames are voiced, and those alone."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl.features.normalization import SlidingMean
from sec4sr_pl.types import mask_padding, valid_mask


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
        if not 0.0 < proportion <= 1.0 or context < 0 or fewest < 0:
            raise ValueError(
                f"Expected proportion in (0, 1] and context, fewest >= 0, got {proportion}, {context} and {fewest}"
            )
        if not (math.isfinite(threshold) and math.isfinite(mean_scale)):
            raise ValueError(f"Expected a finite threshold and mean_scale, got {threshold} and {mean_scale}")
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
