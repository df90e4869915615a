"""Background: listed speakers for models that are tested on others, from few and long utterances."""

from pathlib import Path
from typing import Any

from sec4sr_pl.data.base import SpeakerData
from sec4sr_pl.data.manifest import Utterance, listed, segments, to_samples


class Background(SpeakerData):
    """The speakers of a list; each training utterance is cut into segments, so that one a speaker is enough.

    Segments of one utterance share its session: they vary less than utterances do, so figures on the development part,
    which is held out of the same utterances, are too good, and variation within speakers is understated.

    Args:
        root: holds the splits; default: the variable SEC4SR_DATA, else `data`.
        train_split: folder of the training utterances.
        test_split: folder of the test utterances.
        listed: file with a speaker a line; a relative path begins at the root.
        segment_seconds: least length of a segment.
        kwargs: those of `SpeakerData`.

    Raises:
        ValueError: segments of no length.
    """

    def __init__(
        self,
        root: Path | None = None,
        train_split: str = "Spk251_train",
        test_split: str = "Spk251_test",
        listed: Path = Path("background201.txt"),
        segment_seconds: float = 3.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, train_split, test_split, **kwargs)
        self.listed, self.segment_samples = listed, to_samples(segment_seconds, "segment_seconds")

    @property
    def lists(self) -> list[Path]:
        """The text files that belong to the data."""
        return [*super().lists, self.root / self.listed]

    def utterances(self, part: str) -> list[Utterance]:
        """Segments of `train`, or utterances of `development` or `test`, of the listed speakers.

        Raises:
            DataError: as `SpeakerData.utterances`; also no list, or a listed speaker who is not there.
        """
        utterances = listed(super().utterances(part), self.root / self.listed)
        return segments(utterances, self.segment_samples) if part == "train" else utterances
