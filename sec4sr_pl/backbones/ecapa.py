"""ECAPA-TDNN, of SpeechBrain's layers."""

from pathlib import Path

from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from torch import Tensor

from sec4sr_pl.backbones.hub import HubModel, hub_file
from sec4sr_pl.weights import restore


class ECAPA(HubModel):
    """Squeeze-and-excitation Res2Net blocks, all of which feed an attentive mean and deviation: (batch, 192).

    The convolutions reflect the frames at both ends of the utterance, which no mask can do.

    Args:
        inputs: dimensions of a frame.
        channels: of each block; the layer that brings the blocks together has three times as many. A multiple of 8.
        embedding_size: dimensions of an embedding.

    Raises:
        ValueError: channels that do not divide by 8.

    Source: Desplanques, Thienpondt, Demuynck, "ECAPA-TDNN: Emphasized channel attention, propagation and aggregation in
    TDNN based speaker verification", 2020; the layers are SpeechBrain's, the sizes those of spkrec-ecapa-voxceleb.
    """

    minimum_frames = 5

    def __init__(self, inputs: int = 80, channels: int = 1024, embedding_size: int = 192) -> None:
        super().__init__()
        if channels < 8 or channels % 8:
            raise ValueError(f"Expected channels in a multiple of 8, got {channels}")
        self.inputs, self.channels, self.embedding_size = inputs, channels, embedding_size
        self.network = ECAPA_TDNN(inputs, lin_neurons=embedding_size, channels=[channels] * 4 + [3 * channels])

    @classmethod
    def pretrained(cls, source: str | Path = "speechbrain/spkrec-ecapa-voxceleb") -> "ECAPA":
        """The network with SpeechBrain's weights, or with any that its recipes trained; sizes are the weights' own.

        Args:
            source: a folder that holds `embedding_model.ckpt`, else the name of a repository on the hub.

        Raises:
            FileNotFoundError: neither can be had.
            CheckpointError: a file that is damaged, holds code, or is of another network.
        """
        return restore(cls.__name__, cls.of, hub_file(source))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "ECAPA":
        """The network with the weights of SpeechBrain's."""
        channels, inputs, _ = weights["blocks.0.conv.conv.weight"].shape
        backbone = cls(inputs, channels, len(weights["fc.conv.weight"]))
        backbone.network.load_state_dict(weights)
        return backbone
