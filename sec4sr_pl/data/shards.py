"""Pack a data set into shards: `python -m sec4sr_pl.data.shards --data VoxCeleb --output sharded`.

A split becomes a folder of plain tar files and an index: the speaker, length and place of each utterance. With the
output as its root a data module reads members at their places, so a million utterances need neither a million files to
open nor a look at each of them. All else is as with files: samples, names, the order of an epoch, a resume.

Why not WebDataset or litdata: both are streams, which shuffle shards and then what a buffer or a chunk holds, each
process its own. The order of an epoch would not be the permutation from (seed, epoch), dealt to any number of
processes, on which an exact resume rests. WebDataset can read these tar files all the same.
"""

import csv
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from sec4sr_pl import audio
from sec4sr_pl.checkpoint import CHECKSUMS, checksum
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.manifest import INDEX, DataError, Utterance
from sec4sr_pl.files import check_writable, inside, read_rows, whole


def convert(data: SpeakerData, output: Path, splits: list[str] | None = None, megabytes: int = 1_000) -> None:
    """Pack the files of a data set, unchanged, into shards of the same splits; a killed command goes on.

    Lists in the root go along; one that is elsewhere is found where it is. A shard that was cut, or that is older than
    one of its files, is written again.

    Args:
        data: e.g. VoxCeleb, and its --data.root.
        output: --data.root of the sharded form.
        splits: folders to pack; default: all that belong to the data.
        megabytes: after which a shard ends; an utterance is never cut.

    Raises:
        DataError: files that can't be used, or shards of other utterances in the output.
        ValueError: shards without a size, or a split or a list whose place would be outside the output.
    """
    if megabytes < 1:
        raise ValueError(f"Expected shards of at least 1 megabyte, got {megabytes}")
    if os.path.realpath(data.root) == os.path.realpath(output):
        raise DataError(f"Expected another folder than that of the data, got {output} for both")
    folders = {split: inside(output, split) for split in (data.splits if splits is None else splits)}
    lists = {path: inside(output, path.relative_to(data.root)) for path in data.lists if path.is_relative_to(data.root)}
    for path in (*(folder / INDEX for folder in folders.values()), *lists.values()):
        check_writable(path)
    data.prepare_data()
    for split, folder in folders.items():
        pack(data.scan(split), data.root / split, folder, megabytes * 1_000_000)
    for path, target in lists.items():
        if path.is_file():
            with whole(target) as partial:
                shutil.copyfile(path, partial)
    Console().print(f"{output} is there: use it as --data.root", markup=False, soft_wrap=True)


def pack(utterances: Sequence[Utterance], source: Path, folder: Path, size: int) -> None:
    """Write the shards of a split, then checksums for `sha256sum -c`, and at last the index, which makes it a split.

    Each shard is renamed into place when it is whole; its rows of the index stand beside it, and say that it is.

    Args:
        utterances: whole files, in manifest order.
        source: that holds the files; names inside the shards are relative to it.
        folder: to hold the shards.
        size: bytes after which a shard ends.

    Raises:
        DataError: shards of other utterances in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    rows: list[list[str]] = []
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(str(folder), total=len(utterances))
        for number, part in enumerate(cut(utterances, source, size)):
            shards.append(folder / f"{number:05}.tar")
            planned = [
                [u.name, u.speaker, str(u.frames), str(u.rate), shards[-1].name, *entry(u.path, source)] for u in part
            ]
            note = shards[-1].with_suffix(".csv")
            written = read_rows(note) if note.is_file() else []
            if written and [row[:-1] for row in written] != planned:
                raise DataError(f"{folder} holds shards of other utterances, or of another size: remove it")
            if not (written and is_current(shards[-1], part, *map(int, written[-1][-2:]))):
                (folder / INDEX).unlink(missing_ok=True)  # the checksums, too, are to be made again
                offsets = write_shard(shards[-1], part, source, lambda: progress.advance(task))
                written = [[*row, str(offset)] for row, offset in zip(planned, offsets, strict=True)]
                write_rows(note, written)
            rows += written
            progress.update(task, completed=len(rows))
    if not (folder / INDEX).is_file() or read_rows(folder / INDEX) != rows:
        with whole(folder / CHECKSUMS) as partial:
            partial.write_text("".join(f"{checksum(shard)}  {shard.name}\n" for shard in shards))
        write_rows(folder / INDEX, rows)


def is_current(shard: Path, utterances: Sequence[Utterance], size: int, offset: int) -> bool:
    """Whether a shard holds all of its last file, of `size` bytes at `offset`, and is older than none of its files."""
    if not shard.is_file() or shard.stat().st_size < offset + size:
        return False
    sources = {u.path.archive if isinstance(u.path, audio.Member) else u.path for u in utterances}
    return max(path.stat().st_mtime_ns for path in sources) <= shard.stat().st_mtime_ns


def cut(utterances: Sequence[Utterance], source: Path, size: int) -> Iterator[list[Utterance]]:
    """Runs of utterances of at least `size` bytes; the last may have fewer."""
    part: list[Utterance] = []
    total = 0
    for utterance in utterances:
        part.append(utterance)
        total += int(entry(utterance.path, source)[1])
        if total >= size:
            yield part
            part, total = [], 0
    if part:
        yield part


def entry(path: Path | audio.Member, source: Path) -> tuple[str, str]:
    """The name of a file inside a shard, and its bytes."""
    if isinstance(path, audio.Member):
        return path.name, str(path.size)
    return path.relative_to(source).as_posix(), str(path.stat().st_size)


def write_shard(shard: Path, utterances: Sequence[Utterance], source: Path, done: Callable[[], None]) -> list[int]:
    """Write a tar file, and call `done` after each utterance; where in it each file begins."""
    offsets = []
    with whole(shard) as partial, tarfile.open(partial, "w") as tar:
        for utterance in utterances:
            name, size = entry(utterance.path, source)
            member = tarfile.TarInfo(name)  # no time and no owner: the same files make the same shard
            member.size = int(size)
            with utterance.path.open("rb") as file:
                tar.addfile(member, file)
            offsets.append(tar.offset - -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            done()
    return offsets


def write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV file that appears under its name only when it is whole."""
    with whole(path) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    command(convert, "python -m sec4sr_pl.data.shards", "Pack a data set into shards.", args)


if __name__ == "__main__":
    main()
