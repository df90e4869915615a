"""From a waveform to frames, by named stages: batched, masked, differentiable, without dither."""

from sec4sr_pl.features.base import FrontEnd
from sec4sr_pl.features.delta import Delta
from sec4sr_pl.features.fbank import Fbank, FbankStage
from sec4sr_pl.features.log_mel import LogMel, LogMelStage
from sec4sr_pl.features.mel import Loudness, Mel
from sec4sr_pl.features.mfcc import MFCC, CepstraStage
from sec4sr_pl.features.normalization import MeanNormalization, SlidingMean
from sec4sr_pl.features.spec_mask import SpecMask
from sec4sr_pl.features.spectrum import MelStage, PowerSpectrum, reflect
from sec4sr_pl.features.vad import EnergyVAD, Final, MarkedMean

__all__ = [
    "MFCC",
    "CepstraStage",
    "Delta",
    "EnergyVAD",
    "Fbank",
    "FbankStage",
    "Final",
    "FrontEnd",
    "LogMel",
    "LogMelStage",
    "Loudness",
    "MarkedMean",
    "MeanNormalization",
    "Mel",
    "MelStage",
    "PowerSpectrum",
    "SlidingMean",
    "SpecMask",
    "reflect",
]
