"""From frames to one embedding an utterance."""

from sec4sr_pl.backbones.audionet import AudioNet
from sec4sr_pl.backbones.ecapa import ECAPA
from sec4sr_pl.backbones.ge2e import GE2E
from sec4sr_pl.backbones.hub_xvector import HubXVector
from sec4sr_pl.backbones.ivector import IVector
from sec4sr_pl.backbones.resnet import ResNet
from sec4sr_pl.backbones.xvector import XVector

__all__ = ["ECAPA", "GE2E", "AudioNet", "HubXVector", "IVector", "ResNet", "XVector"]
