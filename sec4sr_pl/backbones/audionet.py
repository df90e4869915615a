"""AudioNet: a small convolutional network over log-mel frames."""

import copy
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sec4sr_pl.types import full_lengths, mask_padding, valid_mask


def batch_norm(norm: nn.Module, signal: Tensor, mask: Tensor | None) -> Tensor:
    """Batch norm of (batch, frames, channels) whose statistics count valid frames only.

    In eval mode, or where there is no padding, this is `norm` itself.
    """
    if mask is None or not norm.training:
        normed: Tensor = norm(signal.transpose(1, 2)).transpose(1, 2)
        return normed
    out = torch.zeros_like(signal)
    out[mask] = norm(signal[mask]).to(out.dtype)
    return out


class Block(nn.Module):
    """Convolution over 3 frames, batch norm, ReLU, and optionally the maximum of each pair of frames."""

    def __init__(self, inputs: int, outputs: int, padding: int = 1, pool: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, 3, padding=padding)
        self.norm = nn.BatchNorm1d(outputs)
        self.shrink = 2 - 2 * padding
        self.pool = pool

    def forward(self, signal: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, channels, frames) and valid frames, which must be followed by zeros; the same after the block."""
        signal = self.convolution(signal)
        if lengths is None:
            signal = functional.relu(self.norm(signal))
        else:
            lengths = lengths - self.shrink
            mask = valid_mask(lengths, signal.shape[2])
            signal = batch_norm(self.norm, signal.transpose(1, 2), mask).transpose(1, 2)
            signal = functional.relu(signal).masked_fill(~mask.unsqueeze(1), 0.0)
        if not self.pool:
            return signal, lengths
        signal = functional.max_pool1d(signal, 2)
        if lengths is None:
            return signal, None
        lengths = lengths // 2
        return signal.masked_fill(~valid_mask(lengths, signal.shape[2]).unsqueeze(1), 0.0), lengths


def tile(signal: Tensor, lengths: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    """Repeat rows of (batch, channels, frames) that have fewer than `minimum` valid frames along time."""
    repeated = torch.where(lengths < minimum, lengths * -(-minimum // lengths), lengths)
    size = max(signal.shape[2], 2 * (minimum - 1))
    positions = torch.arange(size, device=signal.device).expand(len(signal), size) % lengths.unsqueeze(1)
    tiled = signal.gather(2, positions.unsqueeze(1).expand(-1, signal.shape[1], -1))
    return tiled.masked_fill(~valid_mask(repeated, size).unsqueeze(1), 0.0), repeated


@lru_cache
def kernel_places(bands: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each two of the bands, the row of a kernel of 5 at their distance, and whether it reaches that far.

    No buffer of a module: averages of weights would average it, and round.
    """
    with torch.inference_mode(False):
        distance = torch.arange(bands, device=device) - torch.arange(bands, device=device).unsqueeze(1) + 2
        return distance.clamp(0, 4), ((distance >= 0) & (distance < 5)).unsqueeze(2)


class Prefilter(nn.Conv2d):
    """A convolution over 5 bands x 5 frames with one channel, computed as one over 5 frames between bands.

    The same sums: the weight between two bands is the kernel's at their distance. Convolutions of a single channel are
    what libraries do slowest; see benchmarks/prefilter.py.
    """

    def __init__(self, bands: int) -> None:
        super().__init__(1, 1, 5, padding=2)
        self.bands = bands

    def forward(self, input: Tensor) -> Tensor:
        """(batch, bands, frames) -> (batch, bands, frames)."""
        place, near = kernel_places(self.bands, self.weight.device)
        between = self.weight[0, 0][place] * near
        bias = None if self.bias is None else self.bias.expand(len(between))
        return functional.conv1d(input, between, bias, padding=2)


class AudioNet(nn.Module):
    """A 2-D pre-filter, seven convolutions over time, and the maximum over time: (batch, 32) embeddings.

    Args:
        inputs: dimensions of a frame.

    Source: Becker et al., "Interpreting and explaining deep neural networks for classification of audio signals", 2018,
    in the one-dimensional form of Jati et al., 2021.
    """

    embedding_size = 32
    minimum_frames = 8
    masked = True

    def __init__(self, inputs: int = 32) -> None:
        super().__init__()
        self.inputs = inputs
        self.prefilter = Prefilter(inputs)
        self.prefilter_norm: nn.Module = nn.BatchNorm2d(1)
        self.blocks = nn.ModuleList(
            [
                Block(inputs, 64, pool=True),
                Block(64, 128),
                Block(128, 128),
                Block(128, 128, pool=True),
                Block(128, 128),
                Block(128, 64, pool=True),
            ]
        )
        self.last = Block(64, self.embedding_size, padding=0)

    def fused(self) -> "AudioNet":
        """The same function in eval mode, with batch norm inside the convolutions: a frozen copy."""
        fast = copy.deepcopy(self).eval().requires_grad_(False)
        fast.prefilter = fuse_conv_bn_eval(fast.prefilter, fast.prefilter_norm)  # type: ignore[arg-type]
        fast.prefilter_norm = nn.Identity()
        for block in (*fast.blocks, fast.last):
            block.convolution, block.norm = fuse_conv_bn_eval(block.convolution, block.norm), nn.Identity()
        return fast.eval()  # what is new is in train mode, in which valid frames are picked out

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings of (batch, frames, inputs) log-mel frames with (batch,) valid frames."""
        mask = None if lengths is None else valid_mask(lengths, frames.shape[1])
        if lengths is not None:
            frames = mask_padding(frames, lengths)
        signal = self.prefilter(frames.transpose(1, 2))
        if mask is None or not self.training:
            signal = self.prefilter_norm(signal.unsqueeze(1)).squeeze(1)
        else:  # the statistics of one channel count every mel band of a valid frame
            bands = signal.transpose(1, 2)
            normed = torch.zeros_like(bands)
            normed[mask] = self.prefilter_norm(bands[mask][None, None]).squeeze(0, 1).to(normed.dtype)
            signal = normed.transpose(1, 2)
        if mask is not None:
            signal = signal.masked_fill(~mask.unsqueeze(1), 0.0)
        for block in self.blocks:
            signal, lengths = block(signal, lengths)
        if lengths is None and signal.shape[2] >= 3:
            out: Tensor = self.last(signal, None)[0]
            return out.amax(2)
        signal, lengths = tile(signal, full_lengths(signal.transpose(1, 2)) if lengths is None else lengths, 3)
        out, lengths = self.last(signal, lengths)
        return out.masked_fill(~valid_mask(lengths, out.shape[2]).unsqueeze(1), -torch.inf).amax(2)
