"""Verification trials: pairs of utterances, and whether one speaker said both."""

import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from sec4sr_pl.data.manifest import DataError, Utterance, utterance_name


class Trials(NamedTuple):
    """Pairs among utterances, each of which stands once."""

    utterances: list[Utterance]
    pairs: Tensor
    """(trials, 2) int64, which utterances: the one that is enrolled, and the one that claims to be the same speaker."""
    target: Tensor
    """(trials,) bool, whether the speaker is the same."""


def read_list(path: Path) -> list[tuple[bool, str, str]]:
    """The (label, enroll, test) of each line of a list in VoxCeleb's form, `label path path`.

    A trial that stands twice is kept, for the figures of others count it twice, with a warning.

    Args:
        path: of lines with label 1 for the same speaker, 0 for two; empty lines do not count.

    Raises:
        DataError: no such file, no trial in it, a line in another form, or a pair with both labels.
    """
    if not path.is_file():
        raise DataError(f"There is no list of trials {path}: expected lines 'label path path'")
    labels: dict[tuple[str, str], str] = {}
    trials = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise DataError(f"Line {number} of {path} is '{line}': expected 'label path path' with label 0 or 1")
        label, enroll, test = fields
        if labels.setdefault((enroll, test), label) != label:
            raise DataError(f"Line {number} of {path} gives '{enroll} {test}' the other label than before")
        trials.append((label == "1", enroll, test))
    if not trials:
        raise DataError(f"{path} holds no trial: expected lines 'label path path'")
    if len(labels) < len(trials):
        warnings.warn(f"{len(trials) - len(labels)} of the {len(trials)} trials of {path} repeat another", stacklevel=2)
    return trials


def find_trials(path: Path, utterances: Iterable[Utterance], nested: bool = False) -> Trials:
    """The trials of a list among utterances, which are known by the names of their files.

    Args:
        path: as in `read_list`.
        utterances: that have those of the trials among them.
        nested: files lie in folders of sessions.

    Raises:
        DataError: as `read_list`, or a file that is none of the utterances'.
    """
    trials = read_list(path)
    known = {utterance.name: utterance for utterance in utterances}
    files = sorted({file for _, *pair in trials for file in pair})
    names = [utterance_name(PurePosixPath(file), nested) for file in files]
    if missing := [file for file, name in zip(files, names, strict=True) if name not in known]:
        raise DataError(f"{len(missing)} of the {len(files)} files of {path} are not there, first {missing[0]}")
    position = {file: index for index, file in enumerate(files)}
    return Trials(
        [known[name] for name in names],
        torch.tensor([[position[enroll], position[test]] for _, enroll, test in trials]),
        torch.tensor([label for label, _, _ in trials]),
    )
