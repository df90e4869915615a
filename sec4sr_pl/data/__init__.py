"""Data modules over folders of speakers."""

from sec4sr_pl.data.background import Background
from sec4sr_pl.data.base import SpeakerData
from sec4sr_pl.data.librispeech_subsets import LibriSpeech
from sec4sr_pl.data.manifest import Utterance
from sec4sr_pl.data.spk10 import Spk10
from sec4sr_pl.data.spk251 import Spk251
from sec4sr_pl.data.synthetic import SyntheticVoices
from sec4sr_pl.data.trials import Trials
from sec4sr_pl.data.voxceleb import VoxCeleb

__all__ = [
    "Background",
    "LibriSpeech",
    "SpeakerData",
    "Spk10",
    "Spk251",
    "SyntheticVoices",
    "Trials",
    "Utterance",
    "VoxCeleb",
]
