"""Verification trials: claims that two utterances are of one speaker, in lists as VoxCeleb's."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sec4sr_pl.data.manifest import DataError


@dataclass(frozen=True)
class Trials:
    """Pairs of utterances, as positions among the files that they name."""

    files: tuple[str, ...]
    """Paths as in the list, each once, sorted."""
    labels: Tensor
    """(trials,) bool, whether the two are of one speaker."""
    enroll: Tensor
    """(trials,) int64, position of the utterance that is enrolled."""
    test: Tensor
    """(trials,) int64, position of the utterance that claims to be of the same speaker."""

    @classmethod
    def read(cls, path: Path) -> "Trials":
        """Read a list of lines `label path path`, label 1 for the same speaker and 0 for two; empty lines do not count.

        A trial that stands twice is kept, for the figures of others count it twice, with a warning.

        Raises:
            DataError: no such file, no trial in it, a line in another form, or a pair with both labels.
        """
        if not path.is_file():
            raise DataError(f"There is no list of trials {path}: expected lines 'label path path'")
        labels: dict[tuple[str, str], str] = {}
        rows = []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 3 or fields[0] not in ("0", "1"):
                raise DataError(f"Line {number} of {path} is '{line}': expected 'label path path' with label 0 or 1")
            label, enroll, test = fields
            if labels.setdefault((enroll, test), label) != label:
                raise DataError(f"Line {number} of {path} gives '{enroll} {test}' the other label than before")
            rows.append((label == "1", enroll, test))
        if not rows:
            raise DataError(f"{path} holds no trial: expected lines 'label path path'")
        if len(labels) < len(rows):
            warnings.warn(f"{len(rows) - len(labels)} of the {len(rows)} trials of {path} repeat another", stacklevel=2)
        files = tuple(sorted({file for pair in labels for file in pair}))
        position = {file: index for index, file in enumerate(files)}
        return cls(
            files,
            torch.tensor([label for label, _, _ in rows]),
            torch.tensor([position[enroll] for _, enroll, _ in rows]),
            torch.tensor([position[test] for _, _, test in rows]),
        )

    def __len__(self) -> int:
        """Trials."""
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[bool, str, str]]:
        """(label, enroll, test) of each trial, in the order of the list."""
        for label, enroll, test in zip(self.labels.tolist(), self.enroll.tolist(), self.test.tolist(), strict=True):
            yield label, self.files[enroll], self.files[test]

    def split(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """(trials,) scores -> (targets,) and (nontargets,), for `sec4sr_pl.metrics`."""
        labels = self.labels.to(scores.device)
        return scores[labels], scores[~labels]
