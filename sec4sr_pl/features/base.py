"""An ordered dictionary of stages; defenses name the stage they act after.

Each stage maps (signal, lengths) to (signal, lengths); the first takes the waveform.
"""

from torch import Tensor, nn

from sec4sr_pl.types import full_lengths


class FrontEnd(nn.Module):
    """An ordered chain of named stages.

    Args:
        stages: name -> module (signal, lengths) -> (signal, lengths), in the order in which they run. Each tells by
            `minimum_input(positions)` what it needs to leave that many; one that may leave rows of one length
            different lengths has the attribute `selects = True`.
    """

    frame_size: int
    """Dimensions of the last stage's frames."""

    def __init__(self, stages: dict[str, nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames of (batch, time) waveforms: (batch, frames, dims) and (batch,) valid frames."""
        signal, valid = waveforms, full_lengths(waveforms) if lengths is None else lengths
        for stage in self.stages.values():
            signal, valid = stage(signal, valid)
        return signal, valid
