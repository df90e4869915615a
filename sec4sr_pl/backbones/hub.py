"""What SpeechBrain's embedding models share: whole utterances, and weights from a folder or the Hugging Face hub."""

from pathlib import Path

from torch import Tensor, nn

WEIGHTS = "embedding_model.ckpt"
"""The file of the embedding model among those that SpeechBrain publishes."""


class HubModel(nn.Module):
    """An embedding model of SpeechBrain's layers, which padding would reach and no mask can enter.

    Each subclass has its own `pretrained`: a command line knows a classmethod by the class that it says it returns.
    """

    masked = False
    network: nn.Module

    def forward(self, frames: Tensor, lengths: None = None) -> Tensor:
        """Embeddings, (batch, embedding_size), of (batch, frames, inputs) frames of `Fbank`.

        Raises:
            ValueError: lengths, for every frame must be valid.
        """
        if lengths is not None:
            raise ValueError(f"{type(self).__name__} can't mask: expected utterances of one length, without lengths")
        return self.network(frames).flatten(1)  # type: ignore[no-any-return]


def hub_file(source: str | Path) -> Path:
    """The file of an embedding model's weights.

    Args:
        source: a folder that holds `embedding_model.ckpt`, else the name of a repository on the hub.

    Raises:
        FileNotFoundError: neither can be had.
    """
    path = Path(source) / WEIGHTS
    if path.is_file():
        return path
    if Path(source).is_dir():
        raise FileNotFoundError(f"{source} holds no {WEIGHTS}: expected the files of a model on SpeechBrain's hub")
    return _download(str(source))


def _download(repository: str) -> Path:
    """The file of the weights in the hub's cache, downloaded unless it is there."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, WEIGHTS))
    except (OSError, ValueError) as error:  # no network, no such repository or file, no name of a repository
        raise FileNotFoundError(
            f"There is no folder {repository}, and {WEIGHTS} of https://huggingface.co/{repository} can't be had "
            f"({type(error).__name__}): give a folder that holds {WEIGHTS}"
        ) from error
