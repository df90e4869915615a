"""LibriSpeech's subsets as they are unpacked, for training embeddings and for verification."""

from pathlib import Path
from typing import Any

from sec4sr_pl.data.base import SpeakerData


class LibriSpeech(SpeakerData):
    """Any subsets of LibriSpeech: readers to train on, and others.

    Test utterances are of readers who are not trained on, labelled `REJECT`; for closed sets there is `Spk251`.

    Args:
        root: holds the subsets' folders, the `LibriSpeech` of its archives; default: the variable SEC4SR_DATA, else
            `data`.
        train_split: subset of the training utterances, `<speaker>/<chapter>/<utterance>.flac`.
        test_split: subset of the test utterances, in the same form.
        folders: as in `SpeakerData`.
        kwargs: those of `SpeakerData`.
    """

    open_set = True

    def __init__(
        self,
        root: Path | None = None,
        train_split: str = "train-clean-100",
        test_split: str = "test-clean",
        folders: str = "speaker/chapter",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, train_split, test_split, folders=folders, **kwargs)
