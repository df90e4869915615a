"""Data modules over folders of speakers."""

from sec4sr_pl.data.background import Background
from sec4sr_pl.data.base import SpeakerData
from sec4sr_pl.data.manifest import Utterance
from sec4sr_pl.data.spk10 import Spk10
from sec4sr_pl.data.spk251 import Spk251
from sec4sr_pl.data.synthetic import SyntheticVoices

__all__ = ["Background", "SpeakerData", "Spk10", "Spk251", "SyntheticVoices", "Utterance"]
