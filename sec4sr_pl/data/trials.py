"""Verification trials: pairs of utterances, and whether one speaker said both."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sec4sr_pl import audio
from sec4sr_pl.data.manifest import DataError, Utterance
from sec4sr_pl.types import SAMPLE_RATE


class Trials(NamedTuple):
    """Pairs among utterances, each of which stands once."""

    utterances: list[Utterance]
    pairs: Tensor
    """(trials, 2) int64, which utterances."""
    target: Tensor
    """(trials,) bool, whether the speaker is the same."""

    def check(self, source: object) -> "Trials":
        """These trials.

        Raises:
            DataError: trials of one kind only.
        """
        targets = int(self.target.sum())
        if targets in (0, len(self.target)):
            raise DataError(
                f"Expected trials of the same and of different speakers, but {source} has {targets} of the same among "
                f"{len(self.target)}"
            )
        return self


def read_trials(path: Path, root: Path, resample: bool = False) -> Trials:
    """The trials of a list in VoxCeleb's form.

    Args:
        path: of lines `<1 or 0> <file> <file>`, 1 where the speaker is the same.
        root: where the list's paths begin.
        resample: accept other sample rates than 16 kHz.

    Raises:
        DataError: no such list, a line in another form, trials of one kind only, or a file of another sample rate.
        AudioError: a file that is not there or not audio.
    """
    if not path.is_file():
        raise DataError(f"There is no trial list {path}: expected lines '<1 or 0> <file> <file>'")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    for line in lines:
        if len(line) != 3 or line[0] not in ("0", "1"):
            raise DataError(f"{path} has the line '{' '.join(line)}', expected '<1 or 0> <file> <file>'")
    names = {name for _, *pair in lines for name in pair}
    utterances = by_length([_utterance(name, root / name, resample) for name in names])
    position = {utterance.name: index for index, utterance in enumerate(utterances)}
    pairs = torch.tensor([[position[one], position[other]] for _, one, other in lines]).reshape(-1, 2)
    return Trials(utterances, pairs, torch.tensor([label == "1" for label, *_ in lines])).check(path)


def _utterance(name: str, path: Path, resample: bool) -> Utterance:
    header = audio.info(path)
    if header.rate != SAMPLE_RATE and not resample:
        raise DataError(f"{path} has {header.rate} samples a second, expected {SAMPLE_RATE}: convert it")
    return Utterance(name, path.parent.name, path, 0, audio.samples_at_16_khz(header.frames, header.rate), header.rate)


def all_pairs(utterances: Sequence[Utterance]) -> Trials:
    """Every utterance against every other, once.

    Raises:
        DataError: pairs of one kind only.
    """
    ordered = by_length(utterances)
    pairs = torch.combinations(torch.arange(len(ordered)))
    names = sorted({utterance.speaker for utterance in ordered})
    one, other = torch.tensor([names.index(utterance.speaker) for utterance in ordered])[pairs].unbind(1)
    return Trials(ordered, pairs, one == other).check("the set of all pairs")


def by_length(utterances: Iterable[Utterance]) -> list[Utterance]:
    """In an order in which a batch has little padding, the same everywhere."""
    return sorted(utterances, key=lambda utterance: (utterance.frames, utterance.name))
