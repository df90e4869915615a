"""Spk251: the 251 speakers of LibriSpeech train-clean-100, for closed-set identification."""

from typing import Any

from sec4sr_pl.data.base import SpeakerData


class Spk251(SpeakerData):
    """`Spk251_train` and `Spk251_test` of SEC4SR, or of any subset in the same form.

    Args:
        kwargs: those of `SpeakerData`.
    """

    def __init__(self, train_split: str = "Spk251_train", test_split: str = "Spk251_test", **kwargs: Any) -> None:
        super().__init__(train_split=train_split, test_split=test_split, **kwargs)
