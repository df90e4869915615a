"""The contract of a defense: one signature with the stages of a front end."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from sec4sr_pl.draws import Draws
from sec4sr_pl.types import full_lengths, mask_padding


class StraightThrough(torch.autograd.Function):
    """The output forward, the identity backward (BPDA; Athalye et al., 2018)."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, output: Tensor) -> Tensor:
        """`output`, as if it were `signal`."""
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the output for that of the signal."""
        return gradient, None


class Defense(nn.Module, ABC):
    """A transformation of the waveform or of frames, part of the recognizer it defends.

    The caller uses `forward`; a subclass writes `transform`. The output's padding is zero and has no gradient.

    Args:
        after: the stage it acts after: `waveform`, or a stage of the recognizer's front end.
    """

    after: str
    randomized: bool = False
    """Draws at every call, also in eval mode, from its own generator."""
    differentiable: ClassVar[bool] = True
    """False: another gradient stands for that of the transformation, which has none (BPDA)."""
    gradients: ClassVar[tuple[str, ...]] = ("identity",)
    """What can stand for it: `identity`, the gradient of the output for that of the input, first."""
    gradient: str = "identity"
    compresses: ClassVar[bool] = False
    """Leaves fewer frames than it gets."""
    software: str = ""
    """Name and version of a library that the output depends on."""

    def __init__(self, after: str) -> None:
        super().__init__()
        self.after = after
        self.draws = Draws()

    def seed(self, seed: int) -> None:
        """Restart the generator of a randomized defense."""
        self.draws.seed(seed)

    def minimum_input(self, minimum: int) -> int:
        """Positions needed for an output of at least `minimum` positions."""
        return minimum

    @final  # type: ignore[misc]  # nn.Module declares forward as an attribute
    def forward(self, signal: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform (batch, size, ...) with (batch,) valid positions; both come back, the size may have changed."""
        lengths = full_lengths(signal) if lengths is None else lengths
        if self.differentiable:
            output, lengths = self.transform(signal, lengths)
        else:
            with torch.no_grad():
                output, lengths = self.transform(signal, lengths)
            if output.shape != signal.shape:
                raise ValueError(
                    f"{type(self).__name__} made {tuple(output.shape)} of {tuple(signal.shape)}: the gradient of a "
                    "defense that is not differentiable passes unchanged, so it must keep the size"
                )
            output = self.through(signal, output, lengths)
        return mask_padding(output, lengths), lengths

    def through(self, signal: Tensor, output: Tensor, lengths: Tensor) -> Tensor:
        """`output` with the gradient that stands for that of a transformation that has none."""
        return StraightThrough.apply(signal, output)  # type: ignore[no-any-return]

    @abstractmethod
    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed signal and its valid positions; one row never depends on another."""
