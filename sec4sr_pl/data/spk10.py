"""Spk10: ten speakers to enroll, and imposters, for identification and verification."""

from pathlib import Path
from typing import Any

from sec4sr_pl.data.base import SpeakerData
from sec4sr_pl.data.manifest import DataError, Utterance, join


class Spk10(SpeakerData):
    """`Spk10_enroll`, `Spk10_test` and `Spk10_imposter` of SEC4SR, or of any data in the same form.

    Parts are `enroll`, `calibration` (imposters, from whom thresholds come) and `test` (enrolled speakers and other
    imposters). Every second imposter is for calibration, in the order of their numbers, so that no voice is in both.
    Another imposter shifts the halves: a recognizer remembers on whom it was calibrated, and evaluation refuses to test
    them.

    Args:
        root: holds the splits; default: the variable SEC4SR_DATA, else `data`.
        enroll_split: folder of the enrollment utterances, whose speakers are those that are enrolled.
        test_split: folder of other utterances of the same speakers; enrollment does without it.
        imposter_split: folder of speakers who are not enrolled.
        kwargs: those of `SpeakerData`, whose training utterances are those for enrollment.
    """

    open_set = True

    def __init__(
        self,
        root: Path | None = None,
        enroll_split: str = "Spk10_enroll",
        test_split: str = "Spk10_test",
        imposter_split: str = "Spk10_imposter",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, enroll_split, test_split, **kwargs)
        self.enroll_split, self.imposter_split = enroll_split, imposter_split

    @property
    def held_out(self) -> list[str]:
        """The folders in `root` of those who are enrolled or heard in tests."""
        return [*super().held_out, self.imposter_split, self.enroll_split]

    def utterances(self, part: str) -> list[Utterance]:
        """The utterances of `enroll`, `calibration` or `test`, in manifest order; also `train` and `development`.

        Raises:
            DataError: another part, fewer than two imposters, an imposter who is enrolled, a test speaker who is not.
        """
        if part == "enroll":
            return self.scan(self.enroll_split)
        if part not in ("calibration", "test"):
            return super().utterances(part)
        calibration, test = self._imposters()
        if part == "calibration":
            return calibration
        return join({self.test_split: super().utterances("test"), self.imposter_split: test})

    def _imposters(self) -> tuple[list[Utterance], list[Utterance]]:
        """Utterances of the imposters for calibration, and of those for test."""
        utterances = self.scan(self.imposter_split)
        speakers = sorted({u.speaker for u in utterances}, key=lambda name: (len(name), name))  # 26 before 103
        enrolled = {u.speaker for u in self.utterances("enroll")}
        tests = (self.root / self.test_split).is_dir()  # who only enrolls needs no test utterances
        tested = {u.speaker for u in super().utterances("test")} if tests else set()
        if len(speakers) < 2:
            raise DataError(f"{self.root / self.imposter_split} has 1 speaker: expected one to calibrate, one to test")
        if known := sorted(enrolled.intersection(speakers)):
            raise DataError(
                f"{self.imposter_split} holds {', '.join(known[:5])}, enrolled in {self.enroll_split}: expected others"
            )
        if unknown := sorted(tested - enrolled):
            raise DataError(
                f"{self.test_split} holds {', '.join(unknown[:5])}, not in {self.enroll_split}: expected enrolled "
                f"speakers, and imposters in {self.imposter_split}"
            )
        calibrating = set(speakers[::2])
        return (
            [u for u in utterances if u.speaker in calibrating],
            [u for u in utterances if u.speaker not in calibrating],
        )
