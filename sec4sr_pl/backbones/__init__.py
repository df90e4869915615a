"""From frames to one embedding an utterance."""

from sec4sr_pl.backbones.audionet import AudioNet
from sec4sr_pl.backbones.ge2e import GE2E
from sec4sr_pl.backbones.ivector import IVector
from sec4sr_pl.backbones.xvector import XVector

__all__ = ["GE2E", "AudioNet", "IVector", "XVector"]
