"""x-vectors of SpeechBrain's layers."""

from pathlib import Path

import torch
from speechbrain.lobes.models.Xvector import Xvector
from torch import Tensor, nn

from sec4sr_pl.backbones.hub import HubModel, hub_file
from sec4sr_pl.backbones.xvector import pool
from sec4sr_pl.types import full_lengths
from sec4sr_pl.weights import restore


class Pooling(nn.Module):
    """Mean and deviation over time, as SpeechBrain's `StatisticsPooling` expects them.

    That adds noise from 1e-5 to 9e-5 to the means, also in eval mode, whose draws depend on the batch; here their
    expectation stands for it. A channel that does not vary has a gradient.
    """

    MEAN, DEVIATION = 5e-5, 1e-5

    def forward(self, signal: Tensor) -> Tensor:
        """(batch, frames, channels) -> (batch, 1, 2 * channels)."""
        mean, deviation = pool(signal, full_lengths(signal)).chunk(2, dim=1)
        return torch.cat([mean + self.MEAN, deviation + self.DEVIATION], dim=1).unsqueeze(1)


class HubXVector(HubModel):
    """SpeechBrain's x-vectors: five convolutions over time, mean and deviation of each channel, a layer: (batch, 512).

    Unlike `XVector`, the network of the SEC4SR paper: leaky ReLU, batch norms with weights, kernels of 5, 3, 3, 1 and 1
    frames, which reflect the frames at both ends of the utterance, so that no mask is exact.

    Args:
        inputs: dimensions of a frame, those of `Fbank(24)`.
        channels: of the first four convolutions.
        pooled: channels of the last one, of which the mean and deviation are taken.
        embedding_size: dimensions of an embedding.

    Raises:
        ValueError: a size below 1.

    Source: Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", 2018; the layers are
    SpeechBrain's, the sizes those of spkrec-xvect-voxceleb.
    """

    minimum_frames = 4

    def __init__(self, inputs: int = 24, channels: int = 512, pooled: int = 1500, embedding_size: int = 512) -> None:
        super().__init__()
        if min(inputs, channels, pooled, embedding_size) < 1:
            raise ValueError(f"Expected sizes of at least 1, got {inputs}, {channels}, {pooled} and {embedding_size}")
        self.inputs, self.channels, self.pooled, self.embedding_size = inputs, channels, pooled, embedding_size
        widths = [channels] * 4 + [pooled]
        network = Xvector(in_channels=inputs, tdnn_channels=widths, lin_neurons=embedding_size)
        network.blocks[-2] = Pooling()
        self.network = network

    @classmethod
    def pretrained(cls, source: str | Path = "speechbrain/spkrec-xvect-voxceleb") -> "HubXVector":
        """The network with SpeechBrain's weights, or with any that its recipes trained; sizes are the weights' own.

        Args:
            source: a folder that holds `embedding_model.ckpt`, else the name of a repository on the hub.

        Raises:
            FileNotFoundError: neither can be had.
            CheckpointError: a file that is damaged, holds code, or is of another network.
        """
        return restore(cls.__name__, cls.of, hub_file(source))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "HubXVector":
        """The network with the weights of SpeechBrain's."""
        channels, inputs, _ = weights["blocks.0.conv.weight"].shape
        backbone = cls(inputs, channels, len(weights["blocks.12.conv.weight"]), len(weights["blocks.16.w.weight"]))
        backbone.network.load_state_dict(weights)
        return backbone
