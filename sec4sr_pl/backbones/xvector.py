"""x-vectors: a time-delay network whose frames are pooled into mean and deviation."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl.backbones.audionet import batch_norm
from sec4sr_pl.types import full_lengths, valid_mask
from sec4sr_pl.weights import restore


class XVector(nn.Module):
    """Five convolutions over time, the mean and deviation of each channel, and a linear layer: (batch, embedding_size).

    Convolutions see no padding, so that an utterance loses 30 frames; the deviation needs two. Each is followed by ReLU
    and a batch norm without weights of its own. The names of the layers are those of the checkpoints of the SEC4SR
    paper, whose kernels of 5, 5 and 7 frames are denser than Kaldi's.

    Args:
        inputs: dimensions of a frame.
        channels: of the first four convolutions.
        pooled: channels of the fifth, over which mean and deviation are taken.
        embedding_size: dimensions of an embedding.

    Source: Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", 2018.
    """

    minimum_frames = 32
    masked = True

    def __init__(self, inputs: int = 30, channels: int = 512, pooled: int = 1500, embedding_size: int = 512) -> None:
        super().__init__()
        self.inputs, self.channels, self.pooled, self.embedding_size = inputs, channels, pooled, embedding_size
        self.tdnn1 = nn.Conv1d(inputs, channels, 5)
        self.tdnn2 = nn.Conv1d(channels, channels, 5, dilation=2)
        self.tdnn3 = nn.Conv1d(channels, channels, 7, dilation=3)
        self.tdnn4 = nn.Conv1d(channels, channels, 1)
        self.tdnn5 = nn.Conv1d(channels, pooled, 1)
        self.bn_tdnn1 = nn.BatchNorm1d(channels, affine=False)
        self.bn_tdnn2 = nn.BatchNorm1d(channels, affine=False)
        self.bn_tdnn3 = nn.BatchNorm1d(channels, affine=False)
        self.bn_tdnn4 = nn.BatchNorm1d(channels, affine=False)
        self.bn_tdnn5 = nn.BatchNorm1d(pooled, affine=False)
        self.fc1 = nn.Linear(2 * pooled, embedding_size)

    @classmethod
    def pretrained(cls, weights: Path) -> "XVector":
        """The network of the paper with the weights of a state dict, of which layers behind the embedding are left out.

        Args:
            weights: a file of torch.save that holds tensors and plain data alone.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: a file that is damaged or holds code, or a layer that is missing or has another shape.
        """
        return restore(cls.__name__, cls.of, Path(weights))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "XVector":
        """The network with those of these weights that it has layers for."""
        network = cls(weights["tdnn1.weight"].shape[1])
        network.load_state_dict({name: weights[name] for name in network.state_dict() if name in weights})
        return network

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings of (batch, frames, inputs) with (batch,) valid frames."""
        signal = frames
        layers = (self.tdnn1, self.tdnn2, self.tdnn3, self.tdnn4, self.tdnn5)
        norms = (self.bn_tdnn1, self.bn_tdnn2, self.bn_tdnn3, self.bn_tdnn4, self.bn_tdnn5)
        for layer, norm in zip(layers, norms, strict=True):
            signal = functional.relu(layer(signal.transpose(1, 2)).transpose(1, 2))
            lost = frames.shape[1] - signal.shape[1]
            signal = batch_norm(norm, signal, None if lengths is None else valid_mask(lengths - lost, signal.shape[1]))
        return self.fc1(pool(signal, full_lengths(signal) if lengths is None else lengths - lost))  # type: ignore[no-any-return]


def pool(signal: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, channels) -> (batch, 2 * channels): mean and unbiased deviation over the valid frames."""
    mask, count = valid_mask(lengths, signal.shape[1]).unsqueeze(2), lengths.unsqueeze(1)
    mean = signal.masked_fill(~mask, 0.0).sum(1) / count
    around = (signal - mean.unsqueeze(1)).masked_fill(~mask, 0.0)
    variance = around.square().sum(1) / (count - 1)
    return torch.cat([mean, variance.clamp_min(1e-12).sqrt()], dim=1)  # a channel that never fires has a gradient
