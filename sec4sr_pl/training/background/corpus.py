"""The frames of a folder of utterances, cut into segments."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sec4sr_pl.checkpoint import describe
from sec4sr_pl.data.base import Utterances, collate
from sec4sr_pl.data.manifest import Utterance, find_root, listed, scan, segments
from sec4sr_pl.draws import key
from sec4sr_pl.features import FrontEnd


def background(root: Path | None, split: str, speakers: Path | None, seconds: float) -> list[Utterance]:
    """The segments of the speakers of a list, in manifest order.

    Args:
        root: holds the splits; None: the variable SEC4SR_DATA, else `data`.
        split: folder name.
        speakers: file with a speaker a line; a relative path begins at the root. None: all speakers of the split.
        seconds: as in `segments`.

    Raises:
        DataError: as `scan` and `listed`.
        ValueError: segments of no length.
    """
    if not seconds > 0:
        raise ValueError(f"Expected segments of more than 0 seconds, got {seconds}")
    root = find_root(root)
    utterances = scan(root, split)
    return segments(utterances if speakers is None else listed(utterances, root / speakers), seconds)


class Corpus:
    """Batches of the frames of utterances, the same in every pass.

    Args:
        utterances: in the order of the batches.
        features: makes the frames.
        batch_size: utterances of a batch.
        device: where frames are computed and returned.
        num_workers: processes that read ahead.
        keep: hold all frames in memory after the first pass.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        features: FrontEnd,
        batch_size: int = 16,
        device: str | torch.device = "cpu",
        num_workers: int = 0,
        keep: bool = True,
    ) -> None:
        self.utterances, self.features, self.device, self.keep = utterances, features.to(device), device, keep
        dataset = Utterances(utterances, [0] * len(utterances))
        self.loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate)
        self.kept: list[tuple[Tensor, Tensor]] = []

    @property
    def identity(self) -> str:
        """Tells its frames from those of other utterances or another front end, wherever the files lie."""
        pieces = [utterance._replace(path=Path()) for utterance in self.utterances]
        return f"{key(describe(self.features), *pieces):016x}"

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(batch, frames, dims) frames and (batch,) valid frames."""
        if self.kept:
            yield from self.kept
            return
        passed = []
        for batch in self.loader:
            with torch.no_grad():
                frames = self.features(batch.waveforms.to(self.device), batch.lengths.to(self.device))
            if self.keep:
                passed.append(frames)
            yield frames
        self.kept = passed
