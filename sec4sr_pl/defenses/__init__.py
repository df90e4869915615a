"""Input and feature transformations that stand inside a recognizer."""

from sec4sr_pl.defenses.base import Defense
from sec4sr_pl.defenses.feco import FeCo
from sec4sr_pl.defenses.waveform import Quantization

__all__ = ["Defense", "FeCo", "Quantization"]
