"""The frames of utterances, batch by batch."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from sec4sr_pl.checkpoint import describe
from sec4sr_pl.data.base import Batches, Utterances
from sec4sr_pl.data.loader import Loader
from sec4sr_pl.data.manifest import Utterance
from sec4sr_pl.draws import key
from sec4sr_pl.features import FrontEnd
from sec4sr_pl.types import SAMPLE_RATE


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
        utterances: Utterances,
        features: FrontEnd,
        batch_size: int = 16,
        device: str | torch.device = "cpu",
        num_workers: int = 0,
        keep: bool = True,
    ) -> None:
        self.utterances, self.features, self.device, self.keep = utterances, features.to(device), device, keep
        self.loader = Loader(Batches(utterances, batch_size), num_workers=num_workers)
        self.kept: list[tuple[Tensor, Tensor]] = []

    @cached_property
    def identity(self) -> str:
        """Tells its frames from those of other utterances or another front end, wherever the files lie.

        Of each utterance the 0.1 s in its middle are heard, where speech is likelier than silence.
        """
        all_of, heard = self.utterances, hashlib.sha256()
        middles = Utterances(map(middle, all_of.utterances), all_of.labels, all_of.resample)
        for waveform, _, _ in track(Loader(middles, num_workers=self.loader.num_workers), "checksum"):
            heard.update(waveform.numpy().tobytes())
        pieces = [utterance._replace(path=Path()) for utterance in all_of.utterances]
        return f"{key(describe(self.features), heard.hexdigest(), *pieces):016x}"

    def __len__(self) -> int:
        """Batches."""
        return len(self.loader)

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


def middle(utterance: Utterance) -> Utterance:
    """The 0.1 s in its middle, or all of a shorter one."""
    frames = min(utterance.frames, SAMPLE_RATE // 10)
    return utterance._replace(start=utterance.start + (utterance.frames - frames) // 2, frames=frames)
