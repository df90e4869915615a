"""The sorted list of a split's utterances, from the files' headers, read once and cached, or from an index."""

import csv
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import NamedTuple

from sec4sr_pl import audio
from sec4sr_pl.draws import key
from sec4sr_pl.files import inside, read_rows, read_text, whole
from sec4sr_pl.types import REJECT, SAMPLE_RATE

COMMANDS = {
    "Spk251": "librispeech spk251",
    "Spk10": "download Spk10_enroll Spk10_test Spk10_imposter",
}
"""Data set -> the module beside this one, and its arguments, that bring the splits whose names begin so."""


INDEX = "index.csv"
"""In a split's folder: its utterances are in shards, see `sec4sr_pl.data.shards`."""


class DataError(ValueError):
    """A data set that can't be used, with what was expected, what came, and what to do."""


class Utterance(NamedTuple):
    """A stretch of an audio file."""

    name: str
    """Unique in a data set."""
    speaker: str
    path: Path | audio.Member
    start: int
    """First sample, at 16 kHz."""
    frames: int
    """Samples, at 16 kHz."""
    rate: int
    """Samples a second of the file."""


def find_root(root: Path | None) -> Path:
    """The folder of the data: `root`, else the variable SEC4SR_DATA, else `data`."""
    return Path(root if root is not None else os.environ.get("SEC4SR_DATA", "data")).expanduser()


def utterance_name(path: PurePath, nested: bool) -> str:
    """The id of the utterance in a file: its name, and where that does not tell them, its speaker and session first."""
    prefix = "-".join(path.parts[-3:-1])
    return path.stem if not nested or path.stem.startswith(f"{prefix}-") else f"{prefix}-{path.stem}"


def list_files(root: Path, split: str, nested: bool = False) -> list[Path]:
    """The audio files of `<root>/<split>/<speaker>/<utterance>.<wav|flac>`, sorted as strings.

    Args:
        root: holds the splits.
        split: folder name.
        nested: a speaker's folder holds a folder for each session (video, chapter), which hold the files.

    Raises:
        DataError: no such folder, no audio in it, or an utterance id that stands twice.
    """
    folder = root / split
    tree = "<speaker>/<session>/<utterance>" if nested else "<speaker>/<utterance>"
    if not folder.is_dir():
        command = COMMANDS.get(split.partition("_")[0])
        fetch = f", or fetch it: python -m sec4sr_pl.data.{command} --root {shlex.quote(str(root))}" if command else ""
        raise DataError(
            f"There is no folder {folder}: expected {split}/{tree}.wav or .flac under {root}; "
            f"set --data.root or the variable SEC4SR_DATA to the folder that holds it{fetch}"
        )
    folders = _folders(folder)
    if nested:
        folders = [session for speaker in folders for session in _folders(speaker)]
    files = [
        place / name
        for place in folders
        for name in sorted(os.listdir(place))
        if name.lower().endswith(audio.EXTENSIONS) and not name.startswith(".")
    ]
    if not files:
        raise DataError(f"{folder} holds no {tree}.wav or .flac")
    seen: dict[str, Path] = {}
    for path in files:
        name = utterance_name(path, nested)
        if name in seen:
            raise DataError(f"The utterance id '{name}' stands twice: {seen[name]} and {path}; rename one")
        seen[name] = path
    return files


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted as strings; hidden ones do not count."""
    return [
        folder / name
        for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    ]


def scan(root: Path, split: str, resample: bool = False, nested: bool = False) -> list[Utterance]:
    """All utterances of a split, in manifest order; headers are read once and cached.

    Args:
        root: holds the splits.
        split: folder name.
        resample: accept other sample rates than 16 kHz.
        nested: as in `list_files`.

    Raises:
        DataError: as `list_files`; also a file with another sample rate, or a damaged index of shards.
        AudioError: a file that is not audio, empty, or not mono.
    """
    sharded = (root / split / INDEX).is_file()
    utterances = read_index(root / split) if sharded else _scan_files(list_files(root, split, nested), nested)
    for utterance in utterances:
        if utterance.rate != SAMPLE_RATE and not resample:
            raise DataError(
                f"{utterance.path} has {utterance.rate} samples a second, expected {SAMPLE_RATE}: convert it, or set "
                "--data.resample true"
            )
    return utterances


def _scan_files(files: Sequence[Path], nested: bool) -> list[Utterance]:
    stamps = [(path, path.stat()) for path in files]
    signature = key(*((path, stat.st_size, stat.st_mtime_ns) for path, stat in stamps))
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sec4sr_pl" / f"{signature:016x}.csv"
    headers = _read_cache(cache, len(files)) or _read_headers(files, cache)
    return [
        Utterance(
            utterance_name(path, nested),
            path.parts[-3 if nested else -2],
            path,
            0,
            audio.samples_at_16_khz(frames, rate),
            rate,
        )
        for path, (frames, rate) in zip(files, headers, strict=True)
    ]


def read_index(folder: Path) -> list[Utterance]:
    """The utterances of a folder of shards, in the order of its `index.csv`.

    Raises:
        DataError: a row in another form.
    """
    utterances = []
    for row in read_rows(folder / INDEX):
        try:
            name, speaker, frames, rate, shard, path, size, offset = row
            inside(folder, path)  # where it lay before, and will if it is unpacked
            member = audio.Member(inside(folder, shard), path, int(offset), int(size))
            utterances.append(Utterance(name, speaker, member, 0, int(frames), int(rate)))
            if min(member.offset, member.size, *utterances[-1][3:]) < 0:
                raise ValueError("a negative number")
        except ValueError as error:
            raise DataError(f"{folder / INDEX} has the row {row}: make the shards again") from error
    return utterances


def _read_cache(cache: Path, size: int) -> list[tuple[int, int]] | None:
    """Frames and rates from an earlier scan of the same files, or None."""
    try:
        with cache.open(newline="") as file:
            rows = [(int(frames), int(rate)) for frames, rate in csv.reader(file)]
    except (OSError, ValueError):
        return None
    return rows if len(rows) == size else None


def _read_headers(files: Iterable[Path], cache: Path) -> list[tuple[int, int]]:
    """Frames and rate of each file; kept in the cache where that can be written."""
    headers = []
    for path in files:
        header = mono(path)
        headers.append((header.frames, header.rate))
    # a read-only home only costs the next scan
    with suppress(OSError), whole(cache) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(headers)
    return headers


def mono(path: Path) -> audio.AudioInfo:
    """The header of a file with one channel.

    Raises:
        AudioError: as `audio.info`, or a file with more.
    """
    header = audio.info(path)
    if header.channels != 1:
        raise audio.AudioError(f"{path} has {header.channels} channels, expected 1: mix it down to mono")
    return header


def directory(utterance: Utterance) -> PurePath:
    """Where an utterance's file lies; of one in a shard, where it lay before."""
    path = utterance.path
    return path.parent if isinstance(path, Path) else (path.archive.parent / path.name).parent


def split_development(
    utterances: Sequence[Utterance], fraction: float, minimum: int
) -> tuple[list[Utterance], list[Utterance]]:
    """Divide the training utterances into a training and a development part, speaker by speaker.

    Of a speaker with several utterances the last ones are held out, in turn from each of the folders (sessions) they
    lie in; of a speaker with one its last stretch.

    Args:
        utterances: sorted.
        fraction: of each speaker's material that is held out.
        minimum: samples of the shortest development stretch, where that leaves at least as many for training.
    """
    speakers: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    train: list[Utterance] = []
    development: list[Utterance] = []
    for own in speakers.values():
        if len(own) > 1:
            count = min(max(1, round(len(own) * fraction)), len(own) - 1)
            held_out = set(_last_in_turn(own)[:count])
            for place, utterance in enumerate(own):
                (development if place in held_out else train).append(utterance)
        else:
            (whole,) = own
            stretch = min(max(int(whole.frames * fraction), minimum), whole.frames // 2)
            cut = whole.frames - stretch
            train.append(whole._replace(frames=cut))
            development.append(whole._replace(name=f"{whole.name}-dev", start=whole.start + cut, frames=stretch))
    return train, development


def _last_in_turn(utterances: Sequence[Utterance]) -> list[int]:
    """Places of utterances: the last of each folder, from the last folder on, then those before them, and so on."""
    seen: Counter[PurePath] = Counter()
    turns = []
    for place in reversed(range(len(utterances))):
        session = directory(utterances[place])
        turns.append((seen[session], -place))
        seen[session] += 1
    return [-place for _, place in sorted(turns)]


def listed(utterances: Sequence[Utterance], path: Path) -> list[Utterance]:
    """The utterances of the speakers of a file with a speaker a line.

    Raises:
        DataError: no such file, no speaker in it, or a listed speaker who is not there.
    """
    if not path.is_file():
        raise DataError(f"There is no {path}: expected a file with a speaker a line")
    names = set(read_text(path).split())
    if not names:
        raise DataError(f"{path} names no speaker: expected a speaker a line")
    if missing := sorted(names - {utterance.speaker for utterance in utterances}):
        raise DataError(f"{len(missing)} speakers of {path} have no utterance: {', '.join(missing[:5])}")
    return [utterance for utterance in utterances if utterance.speaker in names]


def segments(utterances: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Utterances in equal pieces of at least so many seconds; shorter ones stay whole."""
    pieces = []
    for utterance in utterances:
        count = max(1, int(utterance.frames / (seconds * SAMPLE_RATE)))
        size = utterance.frames // count
        pieces += [
            utterance._replace(name=f"{utterance.name}#{index}", start=utterance.start + index * size, frames=size)
            for index in range(count)
        ]
    return pieces


def label(utterances: Sequence[Utterance], speakers: Sequence[str], closed: bool = True) -> list[int]:
    """The index of each utterance's speaker among `speakers`; an unknown one is REJECT (-1) in an open set.

    Raises:
        DataError: an unknown speaker in a closed set.
    """
    index = {name: position for position, name in enumerate(speakers)}
    unknown = sorted({utterance.speaker for utterance in utterances} - index.keys())
    if unknown and closed:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise DataError(
            f"{len(unknown)} speakers of the data are unknown to the recognizer ({shown}); it knows {len(index)}: "
            f"{', '.join(list(index)[:5])}{', ...' if len(index) > 5 else ''}. A closed set must know all"
        )
    return [index.get(utterance.speaker, REJECT) for utterance in utterances]


def shortened(utterances: Iterable[Utterance], max_seconds: float | None) -> list[Utterance]:
    """The first so many seconds of each utterance; None: all of it.

    Raises:
        ValueError: no length.
    """
    if max_seconds is None:
        return [*utterances]
    samples = round(max_seconds * SAMPLE_RATE)
    if samples < 1:
        raise ValueError(f"Expected max_seconds above 0, got {max_seconds}")
    return [utterance._replace(frames=min(utterance.frames, samples)) for utterance in utterances]


def check_lengths(utterances: Iterable[Utterance], least: int) -> None:
    """Refuse utterances that a recognizer can't score, before any is read.

    Args:
        utterances: as they will be scored.
        least: samples of the shortest that it can, its `minimum_samples`.

    Raises:
        DataError: a shorter one.
    """
    short = {utterance.name: utterance.frames for utterance in utterances if utterance.frames < least}
    if short:
        first, frames = next(iter(short.items()))
        others = f", as are {len(short) - 1} others" if len(short) > 1 else ""
        raise DataError(
            f"Utterance '{first}' has {frames} samples, this recognizer needs at least {least}: leave it out or join "
            f"it with another{others}"
        )
