"""What the framework adds to the bare training loop, and whether the loader keeps up.

The same steps on the same batches: `Trainer.fit` (metrics, a CSV row each step, the callbacks of the command line but
its progress bar) against a loop that calls the objective and the optimizer; in turn. Then utterances a second of the
loader alone, from flac and from wav files.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from setting import rounds, sized
from torch.utils.data import DataLoader

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import PGD
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.callbacks import LastCheckpoint, LoggedRun, StopOnSignal, Throughput
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.draws import key
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training import SpeakerModule
from sec4sr_pl.training.objectives import AdversarialTraining
from sec4sr_pl.types import SAMPLE_RATE, Batch

SPEAKERS, BATCH, CROP = sized((16, 32, 2.0), (2, 4, 0.5))


class Clock(Callback):
    """When each training step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look at the clock."""
        self.ends.append(time.perf_counter())


def write_voices(root: Path, extension: str) -> None:
    """Utterances of noise, 10 s each: files cost the same to read whatever is said."""
    generator = torch.Generator().manual_seed(0)
    for speaker in range(SPEAKERS):
        folder = root / "train" / f"{speaker:02d}"
        folder.mkdir(parents=True)
        noise = 0.05 * torch.randn(10 * SAMPLE_RATE, generator=generator)
        soundfile.write(folder / f"{speaker:02d}-a.{extension}", noise.numpy(), SAMPLE_RATE, subtype="PCM_16")


def data(root: Path) -> SpeakerData:
    """Crops of 2 s."""
    return SpeakerData(root, batch_size=BATCH, crop_seconds=CROP, crops_per_utterance=sized(64, 8), num_workers=1)


def make() -> tuple[Recognizer, AdversarialTraining]:
    """What is trained."""
    torch.manual_seed(0)
    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, [f"{s:02d}" for s in range(SPEAKERS)]))
    return recognizer, AdversarialTraining(PGD(), fraction=0.5)


def by_trainer(batches: list[Batch], folder: Path) -> float:
    """Median seconds of a step of Trainer.fit."""
    recognizer, objective = make()
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[
            clock,
            Throughput(),
            LearningRateMonitor("step"),
            StopOnSignal(),
            LoggedRun(),
            LastCheckpoint(folder),
        ],
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type, type-var]
    trainer.fit(SpeakerModule(recognizer, objective), loader)
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(clock.ends))


def by_hand(batches: list[Batch]) -> float:
    """Median seconds of a step of the bare loop."""
    recognizer, objective = make()
    optimizer = torch.optim.Adam(recognizer.train().parameters())
    ends = []
    for batch in batches:
        optimizer.zero_grad()
        step = objective(recognizer, batch, [key(0, 0, name) for name in batch.names])
        step.loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends))


def loader_speed(root: Path) -> float:
    """Utterances a second, after the first batch."""
    batches = iter(data(root).train_dataloader())
    next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch.names)
    return count / (time.perf_counter() - start)


def main(turns: int = rounds(7), steps: int = sized(12, 3)) -> None:
    """Print both."""
    keep_large_blocks()
    with tempfile.TemporaryDirectory() as scratch:
        roots = {extension: Path(scratch) / extension for extension in ("flac", "wav")}
        for extension, root in roots.items():
            write_voices(root, extension)
        batches = [batch for batch, _ in zip(data(roots["wav"]).train_dataloader(), range(steps), strict=False)]
        framework, bare = [], []
        for _ in range(turns):
            framework.append(by_trainer(batches, Path(scratch)))
            bare.append(by_hand(batches))
        step = statistics.median(bare)
        ratios = [ours / loop for ours, loop in zip(framework, bare, strict=True)]
        print(f"{BATCH} x {CROP} s, PGD-10 on half, {torch.get_num_threads()} threads, {turns} rounds in turn")
        print(f"  bare loop {1e3 * step:.0f} ms, Trainer.fit {1e3 * statistics.median(framework):.0f} ms a step")
        print(f"  overhead {100 * (statistics.median(ratios) - 1):.1f} % ({', '.join(f'{r:.3f}' for r in ratios)})")
        for extension, root in roots.items():
            speed = loader_speed(root)
            print(f"  loader, {extension}: {speed:.0f} utterances/s, {speed * step / BATCH:.1f} times the training's")


if __name__ == "__main__":
    main()
