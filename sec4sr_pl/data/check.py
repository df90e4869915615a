"""Look a data set over: `python -m sec4sr_pl.data.check --data SpeakerData --data.root ...`."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch.utils.data import Dataset

from sec4sr_pl import audio
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.loader import Loader
from sec4sr_pl.data.manifest import Utterance, tell_short
from sec4sr_pl.data.problems import DataError, Problems
from sec4sr_pl.types import SAMPLE_RATE

CLIPPED = 0.001
"""Part of the samples of a file that may be at full scale."""


class Decoded(Dataset[Problems]):
    """What is wrong with the samples of each file; a loader's processes share the work."""

    def __init__(self, utterances: Sequence[Utterance]) -> None:
        self.utterances = utterances

    def __len__(self) -> int:
        """Files."""
        return len(self.utterances)

    def __getitem__(self, index: int) -> Problems:
        """Decode the file at a position."""
        path, problems = self.utterances[index].path, Problems()
        try:
            level = audio.read(path, resample=True).abs()
        except audio.AudioError as error:
            problems.unreadable(path, error)
            return problems
        if float(level.max()) < 1 / audio.FULL_SCALE:
            problems.fault(path, "is silent: replace or remove it")
        full = float((level >= 1 - 1 / audio.FULL_SCALE).float().mean())
        if full > CLIPPED:
            problems.note(path, f"is clipped: {full:.1%} of its samples are at full scale", "clipped")
        return problems


def check(
    data: SpeakerData, splits: list[str] | None = None, samples: bool = False, checkpoint: Path | None = None
) -> None:
    """Look at the header of every file of a data set, noises and rooms included, and tell all that is wrong at once.

    Args:
        data: e.g. SpeakerData, and its --data.root.
        splits: folders to look at; default: all that belong to the data.
        samples: decode every file: damage, NaN, samples beyond full scale, silence and clipping.
        checkpoint: of a recognizer: utterances that are too short for it are told.

    Raises:
        DataError: files or folders that can't be used, with counts and first examples.
    """
    minimum = 1 if checkpoint is None else load_recognizer(checkpoint).minimum_samples
    data.prepare_data()
    found: dict[str, list[Utterance]] = {}
    with data.collected() as problems:
        for split in data.splits if splits is None else splits:
            try:
                found[split] = data.scan(split)
                scored = data.utterances("development") if split == data.train_split else found[split]
                tell_short(scored, minimum, problems)
            except DataError as error:
                problems.stop(error)
        data.locate_sounds(problems)
    found |= {str(module.folder): module.sounds or [] for module in data.from_folders()}
    show(found)
    if samples:
        decode([*chain.from_iterable(found.values())], data.num_workers, problems)
    problems.tell()
    Console().print(f"All {sum(map(len, found.values())):,} files can be used", markup=False)


def show(found: dict[str, list[Utterance]]) -> None:
    """Print what was read of each folder."""
    table = Table("folder")
    for name in ("speakers", "files", "hours", "shortest, s", "longest, s"):
        table.add_column(name, justify="right")
    for folder, utterances in found.items():
        seconds = [utterance.frames / SAMPLE_RATE for utterance in utterances] or [0.0]
        speakers = len({utterance.speaker for utterance in utterances if utterance.speaker})
        figures = [f"{sum(seconds) / 3_600:,.2f}", f"{min(seconds):,.2f}", f"{max(seconds):,.2f}"]
        table.add_row(escape(folder), f"{speakers:,}", f"{len(utterances):,}", *figures)
    Console().print(table)


def decode(utterances: Sequence[Utterance], workers: int, problems: Problems) -> None:
    """Tell of what is wrong with the samples of files, showing progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("decoded", total=len(utterances))
        for found in Loader(Decoded(utterances), num_workers=workers):
            problems.add(found)
            progress.advance(task)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    command(check, "python -m sec4sr_pl.data.check", "Tell all that is wrong with a data set.", args, resumes=False)


if __name__ == "__main__":
    main()
