"""Make 16 kHz mono flac of any tree of audio: `python -m sec4sr_pl.data.prepare SOURCE OUTPUT`."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import Dataset

from sec4sr_pl import audio, system
from sec4sr_pl.command import command
from sec4sr_pl.data import foreign
from sec4sr_pl.data.loader import Loader
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.files import FULL, check_writable, whole

Outcome = tuple[Literal["converted", "there", "failed"], str]
"""What became of a file, and why."""


class Conversions(Dataset[Outcome]):
    """Files to convert; each is converted when it is asked for, so that a loader's processes share the work.

    Args:
        pairs: a file, and the flac file to make of it.
        mix: as in `prepare`.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], mix: bool) -> None:
        self.pairs, self.mix = pairs, mix

    def __len__(self) -> int:
        """Files."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Outcome:
        """Convert the file at a position, unless that was done.

        Raises:
            OSError: the disk is full.
        """
        source, target = self.pairs[index]
        try:
            if is_done(source, target):
                return "there", ""
            content = audio.encode(foreign.read(source, self.mix))
            with whole(target) as partial:
                partial.write_bytes(content)
        except (audio.AudioError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            return "failed", str(error)
        return "converted", ""


def prepare(source: Path, output: Path, mix: bool = False, workers: int = system.cores()) -> None:
    """Make a tree of 16-bit flac files, 16 kHz mono, of the audio of another, with the same folders and names.

    A file that can't be converted is told, and the others are done. A killed command goes on: what is whole and newer
    than its source is kept. The same files give the same bytes.

    Args:
        source: folder of files of any kind that libsndfile or ffmpeg reads; links in it are followed.
        output: folder to write, a root or a split of a data set.
        mix: take the mean of the channels of a file that has several, instead of refusing it.
        workers: processes that convert.

    Raises:
        DataError: folders that can't be used, two files that would become one, or files that could not be converted.
        OSError: the disk is full.
    """
    if workers < 0:
        raise DataError(f"Expected workers >= 0, got {workers}")
    check_writable(output / "any.flac")
    if not source.is_dir():
        raise DataError(f"There is no folder {source}")
    here, there = source.resolve(), output.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise DataError(f"Expected folders of which none is inside the other, got {source} and {output}")
    others: Counter[str] = Counter()
    pairs = plan(sorted(find(source, others)), source, output)
    if not pairs:
        raise DataError(f"{source} holds no audio{counted(others)}")
    counts: Counter[str] = Counter()
    failures = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("converted", total=len(pairs))
        for state, reason in Loader(Conversions(pairs, mix), num_workers=min(workers, len(pairs))):
            counts[state] += 1
            failures += [reason] if state == "failed" else []
            shown = f"converted, {len(failures)} failed" if failures else "converted"
            progress.update(task, advance=1, description=shown)
    Console().print(
        f"{output}: {counts['converted']} files converted, {counts['there']} were there{counted(others)}",
        markup=False,
        soft_wrap=True,
    )
    for reason in failures:
        Console(stderr=True).print(" ".join(reason.split()), markup=False, highlight=False, soft_wrap=True)
    if failures:
        raise DataError(
            f"{len(failures)} of {len(pairs)} files could not be converted; the same command tries these again"
        )


def find(folder: Path, others: Counter[str], above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files below a folder that are called like audio; hidden names do not count.

    Args:
        folder: whose links are followed.
        others: counts the other files by their extension.
        above: the folders around it: a link back to one of them ends there.
    """
    here = folder.resolve()
    for entry in os.scandir(folder) if here not in above else ():
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from find(path, others, above | {here})
        elif path.suffix.lower() in foreign.EXTENSIONS:
            yield path
        else:
            others[path.suffix.lower() or "without an extension"] += 1


def counted(others: Counter[str]) -> str:
    """How many files are no audio, to follow a sentence."""
    parts = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
    return f", {others.total()} are no audio ({parts})" if others else ""


def plan(sources: Sequence[Path], source: Path, output: Path) -> list[tuple[Path, Path]]:
    """Each file with the file that it becomes.

    Raises:
        DataError: two that become one, or a link in the output that leads out of it.
    """
    made: dict[Path, Path] = {}
    for path in sources:
        target = (output / path.relative_to(source)).with_suffix(".flac")
        if target in made:
            raise DataError(f"{made[target]} and {path} would both become {target}: rename or remove one")
        made[target] = path
    root = output.resolve()
    for folder in sorted({target.parent for target in made}):
        if not folder.resolve().is_relative_to(root):
            raise DataError(f"{folder} leads out of {output}: remove the link")
    return [(path, target) for target, path in made.items()]


def is_done(source: Path, target: Path) -> bool:
    """Whether a file was made after its source was last written, and is whole."""
    if target.is_symlink() or not target.is_file() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
        return False
    try:
        audio.read(target, audio.info(target).frames - 1)
    except audio.AudioError:
        return False
    return True


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    command(
        prepare,
        "python -m sec4sr_pl.data.prepare",
        "Make 16 kHz mono flac of any tree of audio.",
        args,
        positional=True,
    )


if __name__ == "__main__":
    main()
