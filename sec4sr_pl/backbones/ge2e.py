"""GE2E: a recurrent network over windows of 1.6 s, with weights that come with a Python package."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl.types import full_lengths, mask_padding, valid_mask
from sec4sr_pl.weights import restore

FRAMES, STEP = 160, 77
"""Frames of a window, and between the starts of two: 1.3 windows a second."""
COVERED = 120
"""Hops of the utterance that a further window must hold, three quarters."""
TAIL = 2
"""Frames of `Mel` past the utterance's own, in which the last analysis window leaves it."""


def count_windows(lengths: Tensor) -> Tensor:
    """Windows of each utterance of (batch,) frames: the first, and each further one that is covered."""
    return 1 + (lengths - TAIL - 1 - COVERED).clamp_min(0) // STEP


class GE2E(nn.Module):
    """Three LSTM layers, a ReLU, a unit vector for each window of 160 frames; their mean, (batch, 256), is unit too.

    Windows begin every 77 frames. The last hears silence past the utterance's end; it is left out, unless it is the
    only one, where the utterance covers less than three quarters of it.

    Source: Wan et al., "Generalized end-to-end loss for speaker verification", 2018; sizes, windows and weights are
    Resemblyzer's (https://github.com/resemble-ai/Resemblyzer, Apache 2.0).
    """

    inputs, embedding_size = 40, 256
    minimum_frames = TAIL + 2
    masked = True

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(self.inputs, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, self.embedding_size)

    @classmethod
    def pretrained(cls, weights: Path | None = None) -> "GE2E":
        """The network with Resemblyzer's weights.

        Args:
            weights: default: the file inside the installed package `resemblyzer`, of which no code is run.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: a file that is damaged, holds code, or is of another network.
        """
        if weights is None and (package := find_spec("resemblyzer")) is not None:
            weights = Path(str(package.origin)).with_name("pretrained.pt")
        if weights is None or not weights.is_file():
            raise FileNotFoundError(
                "The weights of GE2E come with the package resemblyzer, of which nothing else is needed: "
                "pip install --no-deps resemblyzer"
            )
        return restore(cls.__name__, cls.of, weights)

    @classmethod
    def of(cls, weights: dict[str, dict[str, Tensor]]) -> "GE2E":
        """The network with the weights of Resemblyzer's, which has a layer more."""
        network = cls()
        network.load_state_dict({name: weights["model_state"][name] for name in network.state_dict()})
        return network

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings of (batch, frames, 40) frames of `Mel` with (batch,) valid frames."""
        if lengths is None:
            lengths = full_lengths(frames)
        count, most = count_windows(lengths), int(count_windows(torch.tensor(frames.shape[1])))
        silence = max(0, (most - 1) * STEP + FRAMES - frames.shape[1])
        windows = functional.pad(mask_padding(frames, lengths), (0, 0, 0, silence)).unfold(1, FRAMES, STEP)[:, :most]
        units = self.embed(windows.flatten(0, 1).transpose(1, 2)).reshape(len(frames), most, -1)
        mean = (units * valid_mask(count, most).unsqueeze(2)).sum(1) / count.unsqueeze(1)
        return functional.normalize(mean)

    def embed(self, windows: Tensor) -> Tensor:
        """(windows, 160, 40) -> (windows, 256) unit vectors."""
        start = windows.new_zeros(self.lstm.num_layers, len(windows), self.lstm.hidden_size)
        weights: list[Tensor] = [*self.lstm.parameters()]
        # cuDNN has the gradient in train mode alone, and an attack is in eval mode; without dropout the two are one
        _, last, _ = torch.lstm(windows, (start, start), weights, True, self.lstm.num_layers, 0.0, True, False, True)
        return functional.normalize(self.linear(last[-1]).relu())
