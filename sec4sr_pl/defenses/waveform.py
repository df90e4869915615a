"""Transformations of the waveform."""

from typing import ClassVar

from torch import Tensor

from sec4sr_pl.defenses.base import Defense


class Quantization(Defense):
    """Round samples to multiples of a step (QT): round(x / step) * step on the 16-bit scale.

    Args:
        step: in units of the 16-bit scale; 512 leaves 7 bits.

    Raises:
        ValueError: a step that is not between 1 and 32,768.

    Source: Yang et al., "Characterizing audio adversarial examples using temporal dependency", 2019.
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, step: int = 512) -> None:
        super().__init__(after="waveform")
        if not 1 <= step <= 32_768:
            raise ValueError(f"Expected a step of 1 to 32768 on the 16-bit scale, got {step}")
        self.step = step

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded samples, still in [-1, 1]."""
        step = self.step / 32_768
        return ((signal / step).round() * step).clamp(-1.0, 1.0), lengths
