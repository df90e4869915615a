"""Slopes of frames over time."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl.types import mask_padding


class Delta(nn.Module):
    """Frames beside their slopes over time, and the slopes' slopes: regression lines over `2 window + 1` frames.

    Past its ends an utterance goes on with its first and last frame.

    Args:
        order: how often slopes are taken.
        window: frames to each side.

    Raises:
        ValueError: an order or window below 1, or so large that no utterance has the frames.

    Source: Kaldi's add-deltas.
    """

    def __init__(self, order: int = 2, window: int = 3) -> None:
        super().__init__()
        if not (1 <= order <= 10 and 1 <= window <= 100):
            raise ValueError(f"Expected an order from 1 to 10 and a window from 1 to 100, got {order} and {window}")
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
