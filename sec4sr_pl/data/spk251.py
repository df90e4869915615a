"""Spk251: the 251 speakers of LibriSpeech train-clean-100, for closed-set identification."""

from pathlib import Path
from typing import Any

from sec4sr_pl.data.base import SpeakerData


class Spk251(SpeakerData):
    """`Spk251_train` and `Spk251_test` of SEC4SR, or of any subset in the same form.

    Args:
        root: holds the splits; default: the variable SEC4SR_DATA, else `data`.
        train_split: folder of the training utterances.
        test_split: folder of the test utterances.
        kwargs: those of `SpeakerData`.
    """

    def __init__(
        self,
        root: Path | None = None,
        train_split: str = "Spk251_train",
        test_split: str = "Spk251_test",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, train_split, test_split, **kwargs)
