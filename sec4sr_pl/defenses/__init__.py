"""Input and feature transformations that stand inside a recognizer."""

from sec4sr_pl.defenses.base import Defense
from sec4sr_pl.defenses.codecs import AACConstant, AACVariable, MP3Constant, MP3Variable, Opus
from sec4sr_pl.defenses.feco import FeCo, Shuffle
from sec4sr_pl.defenses.filters import AverageSmoothing, BandPass, Downsampling, LowPass
from sec4sr_pl.defenses.speech_codecs import AMR, Speex
from sec4sr_pl.defenses.warped import WarpedFeCo
from sec4sr_pl.defenses.waveform import BitDepthReduction, GaussianNoise, MedianSmoothing, Quantization

__all__ = [
    "AMR",
    "AACConstant",
    "AACVariable",
    "AverageSmoothing",
    "BandPass",
    "BitDepthReduction",
    "Defense",
    "Downsampling",
    "FeCo",
    "GaussianNoise",
    "LowPass",
    "MP3Constant",
    "MP3Variable",
    "MedianSmoothing",
    "Opus",
    "Quantization",
    "Shuffle",
    "Speex",
    "WarpedFeCo",
]
