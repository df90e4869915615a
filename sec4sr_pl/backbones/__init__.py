"""From frames to one embedding an utterance."""

from sec4sr_pl.backbones.audionet import AudioNet

__all__ = ["AudioNet"]
