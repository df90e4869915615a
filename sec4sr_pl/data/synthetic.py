"""SyntheticVoices: the embedded data set, spoken by eSpeak NG in seconds."""

from pathlib import Path
from typing import Any

from sec4sr_pl.data.base import SpeakerData
from sec4sr_pl.data.speech_synthesis import synthesize


class SyntheticVoices(SpeakerData):
    """Synthetic speakers for demos and tests: no download. Figures on it say nothing about people.

    Args:
        root: where the voices are kept; default: `data/synthetic-voices`, wherever other data lies.
        voices: number of speakers.
        train_utterances: of each speaker, 2 to 4 seconds each.
        test_utterances: of each speaker.
        kwargs: those of `SpeakerData`.
    """

    def __init__(
        self,
        root: Path | None = None,
        voices: int = 20,
        train_utterances: int = 12,
        test_utterances: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=Path("data/synthetic-voices") if root is None else root, **kwargs)
        self.voices, self.train_utterances, self.test_utterances = voices, train_utterances, test_utterances

    def prepare_data(self) -> None:
        """Let the voices speak, unless they have."""
        synthesize(self.root, self.train_split, self.voices, self.train_utterances)
        synthesize(self.root, self.test_split, self.voices, self.test_utterances, first_utterance=self.train_utterances)
