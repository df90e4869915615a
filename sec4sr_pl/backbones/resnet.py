"""ResNet-34 for speakers, of SpeechBrain's layers."""

from pathlib import Path

from speechbrain.lobes.models.ResNet import ResNet as ResNet34
from torch import Tensor

from sec4sr_pl.backbones.hub import HubModel, hub_file
from sec4sr_pl.weights import restore


class ResNet(HubModel):
    """Pre-activated residual blocks over time and frequency, an attentive mean and deviation: (batch, 256).

    Each batch norm turns the silence past an utterance into sound, which no mask outside of the layers can undo.

    Args:
        inputs: dimensions of a frame.
        channels: of the first two stages; the last two have twice as many.
        embedding_size: dimensions of an embedding.

    Raises:
        ValueError: a size below 1.

    Source: He et al., "Identity mappings in deep residual networks", 2016; the layers are SpeechBrain's, the sizes
    those of spkrec-resnet-voxceleb.
    """

    minimum_frames = 2  # the mean of a single frame leaves nothing of it

    def __init__(self, inputs: int = 80, channels: int = 128, embedding_size: int = 256) -> None:
        super().__init__()
        if min(inputs, channels, embedding_size) < 1:
            raise ValueError(f"Expected sizes of at least 1, got {inputs}, {channels} and {embedding_size}")
        self.inputs, self.channels, self.embedding_size = inputs, channels, embedding_size
        widths = [channels, channels, 2 * channels, 2 * channels]
        self.network = ResNet34(inputs, channels=widths, lin_neurons=embedding_size)

    @classmethod
    def pretrained(cls, source: str | Path = "speechbrain/spkrec-resnet-voxceleb") -> "ResNet":
        """The network with SpeechBrain's weights, or with any of its form for 80 bands; sizes are the weights' own.

        Args:
            source: a folder that holds `embedding_model.ckpt`, else the name of a repository on the hub.

        Raises:
            FileNotFoundError: neither can be had.
            CheckpointError: a file that is damaged, holds code, or is of another network.
        """
        return restore(cls.__name__, cls.of, hub_file(source))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "ResNet":
        """The network with the weights of SpeechBrain's."""
        backbone = cls(channels=len(weights["conv1.weight"]), embedding_size=len(weights["fc_embed.bias"]))
        backbone.network.load_state_dict(weights)
        return backbone
