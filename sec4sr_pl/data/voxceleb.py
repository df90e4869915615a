"""VoxCeleb: speech of celebrities on YouTube, for training embeddings and for verification."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sec4sr_pl.data.base import SpeakerData
from sec4sr_pl.data.manifest import DataError, Utterance
from sec4sr_pl.data.trials import Trials

TREE = """expected, of VoxCeleb 1 and 2 (their authors give the files to those who ask for a key, at
https://mm.kaist.ac.kr/datasets/voxceleb), what is used of
  vox1_dev/wav/<speaker>/<video>/<utterance>.wav
  vox1_test/wav/<speaker>/<video>/<utterance>.wav
  vox2_dev/wav/<speaker>/<video>/<utterance>.wav
  veri_test2.txt, list_test_all2.txt, list_test_hard2.txt
or name other folders by --data.train_split, --data.test_split, --data.trials and --data.trial_splits"""


class VoxCeleb(SpeakerData):
    """VoxCeleb1 and VoxCeleb2: training speakers, and trials of others.

    The trials of VoxCeleb1-O are of the 40 speakers of `vox1_test`; those of E and H are of all of VoxCeleb1, which
    then can't be trained on. Test utterances are of speakers who are not trained on, labelled `REJECT`.

    Args:
        root: holds the folders and lists; default: the variable SEC4SR_DATA, else `data`.
        train_split: folder of the training utterances, `<speaker>/<video>/<utterance>.wav`.
        test_split: folder of the test utterances, in the same form.
        trials: `veri_test2.txt` (O), `list_test_all2.txt` (E), `list_test_hard2.txt` (H), or another list in the form.
        trial_splits: folders that hold the files of the trials.
        folders: as in `SpeakerData`.
        kwargs: those of `SpeakerData`.

    Source: Nagrani, Chung and Zisserman, "VoxCeleb: a large-scale speaker identification dataset", 2017; Chung, Nagrani
    and Zisserman, "VoxCeleb2: deep speaker recognition", 2018.
    """

    open_set = True

    def __init__(
        self,
        root: Path | None = None,
        train_split: str = "vox2_dev/wav",
        test_split: str = "vox1_test/wav",
        trials: Path = Path("veri_test2.txt"),
        trial_splits: Sequence[str] = ("vox1_test/wav",),
        folders: str = "speaker/video",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root, train_split, test_split, folders=folders, trials=trials, trial_splits=trial_splits, **kwargs
        )

    def scan(self, split: str) -> list[Utterance]:
        """All utterances of a folder.

        Raises:
            DataError: no such folder, or what `SpeakerData` refuses.
        """
        folder = self.root / split
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}: {TREE}")
        return super().scan(split)

    def trials(self) -> Trials:
        """The verification trials, whose speakers must be no training speakers.

        Raises:
            DataError: as in the base, or a speaker who is trained on.
        """
        trials = super().trials()
        there = (self.root / self.train_split).is_dir()  # who only tests needs no training utterances
        trained = {utterance.speaker for utterance in self.scan(self.train_split)} if there else set()
        if both := sorted(trained.intersection(utterance.speaker for utterance in trials.utterances)):
            raise DataError(
                f"{len(both)} speakers of {self.trial_list} are trained on ({', '.join(both[:5])}): train on "
                "VoxCeleb2 for the trials E and H"
            )
        return trials
